"""Settings of an experiment: read, checked and resolved into one request."""
