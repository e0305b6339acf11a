"""Built-in backbones, which are plugins like all others."""
