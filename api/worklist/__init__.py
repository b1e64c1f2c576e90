"""The list in reading order, its filters, reading locks and live events."""
