"""Osteon's words as types: states, codes, decisions. Nothing here uses a database, a file format or a network."""
