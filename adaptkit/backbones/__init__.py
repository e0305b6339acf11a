"""Built-in backbones, offered through the same hooks as those of other plugins."""
