"""Built-in data sets and shifts, and what becomes of them: the source, the pool and the two test sets."""
