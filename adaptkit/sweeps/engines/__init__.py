"""Engines: they run the trials of a sweep."""
