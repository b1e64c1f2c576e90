"""Odd files that real sites sent, each from a public report; README.md lists what each showed."""
