"""The built-in strategies, loaded through the same hooks as anybody's."""
