"""Built-in metrics: they score the predicted probabilities of a model on labelled images."""
