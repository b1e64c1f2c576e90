"""What api, worker and training have in common; the layer law of its modules stands in pyproject.toml."""
