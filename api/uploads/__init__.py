"""Files in: requests, zip archives, receipts, and files that wait for a decision."""
