"""Work of a worker beside analyses: lost messages, backfill runs, heartbeats, comparisons."""
