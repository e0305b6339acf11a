"""The experiment: one base, then one adaptation run per strategy and seed. Here the parts meet."""
