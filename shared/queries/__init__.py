"""Every query, by noun. The caller owns the transaction."""
