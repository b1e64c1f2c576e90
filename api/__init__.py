"""The thin upload API and the page: no torch, no numpy, no pixel is ever decoded here."""
