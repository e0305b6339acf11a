"""Train and evaluate models."""
