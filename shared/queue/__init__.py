"""The Celery application, the messages that it sends, and its transport."""
