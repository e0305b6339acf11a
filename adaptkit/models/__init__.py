"""The model of a finished run: rebuilt from its artifacts, used and exported."""
