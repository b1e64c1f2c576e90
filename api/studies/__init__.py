"""One study: its findings, pictures and report, and deleting it."""
