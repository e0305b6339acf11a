"""Tune strategies with an equal budget: search spaces, search, studies."""
