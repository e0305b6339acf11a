"""Tune strategies with the same number of trials each: search spaces, search and stored studies."""
