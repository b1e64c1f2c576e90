"""What administrators and operators see, decide and change."""
