"""Adapter files: what a strategy changed, kept apart from its base."""
