"""What api, worker and training have in common; pyproject.toml has the layers of its modules."""

__version__ = "0.2.0"  # the only place: the distribution, `osteon --version` and the API take it from here
