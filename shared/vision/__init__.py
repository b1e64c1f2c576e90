"""From stored bytes to findings, as values: no storage, no rows, no queue."""
