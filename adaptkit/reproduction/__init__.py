"""Re-run a recorded run and compare the results."""
