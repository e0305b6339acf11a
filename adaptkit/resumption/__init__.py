"""Resume interrupted runs."""
