"""From stored bytes to frames as arrays: decoding, padding, the exposed field, the network's input."""
