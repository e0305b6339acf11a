"""Built-in strategies, which are plugins like all others."""
