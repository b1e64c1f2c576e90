"""Osteon on one machine without containers: Postgres, Valkey and all processes, supervised."""
