"""Models: stored, compared, activated; backfill runs; revised findings."""
