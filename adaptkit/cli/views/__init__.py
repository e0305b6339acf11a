"""How plans, progress and results look on a terminal."""
