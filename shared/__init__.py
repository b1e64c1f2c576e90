"""What api, worker and training have in common; the layer law of its modules stands in pyproject.toml."""

__version__ = "0.1.0"  # the only place: the distribution, `osteon --version` and the API take it from here
