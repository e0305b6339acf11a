"""Sweeps: grids of settings, planned trials, and the engines that run them."""
