"""The API with one key (`api`), and what a hospital's bulk sender does.

walk ──► plan (what the journal knows is left out) ──► groups ──► upload ──► journal, then receipt, then reconciled
"""
