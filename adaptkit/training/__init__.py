"""Train and evaluate: what an epoch is, who seeds and who freezes."""
