"""Read, check and resolve the settings of an experiment."""
