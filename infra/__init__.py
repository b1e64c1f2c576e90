"""The local stack: real Postgres and Valkey from pip, and our own processes, under one supervisor."""
