"""Adapter files: the tensors that a strategy changed, stored without the base."""
