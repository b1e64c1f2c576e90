"""Small studies for the demo and the smoke tests, with the outcome expected of each file."""
