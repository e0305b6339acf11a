"""The built-in backbones, loaded through the same hooks as anybody's."""
