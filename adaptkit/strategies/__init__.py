"""Built-in strategies, offered through the same hooks as those of other plugins."""
