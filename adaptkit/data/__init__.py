"""Data sets and shifts, and their division into source, pool and test sets."""
