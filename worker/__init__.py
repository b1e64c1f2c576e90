"""Takes studies from the queues, analyses them in batches, writes findings."""
