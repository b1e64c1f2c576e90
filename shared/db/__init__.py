"""Postgres: one pool of connections a process, the tables, notifications, who may do what."""
