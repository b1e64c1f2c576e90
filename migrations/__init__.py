"""The schema's history; Alembic loads env.py and versions/ by their paths."""
