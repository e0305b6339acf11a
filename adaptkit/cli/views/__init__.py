"""Print plans, progress and results on a terminal."""
