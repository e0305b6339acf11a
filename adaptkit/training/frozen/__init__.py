"""Compute the features of frozen layers once and reuse them."""
