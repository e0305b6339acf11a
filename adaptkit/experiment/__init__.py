"""Run experiments: obtain one base, then make one adaptation run for each strategy and seed."""
