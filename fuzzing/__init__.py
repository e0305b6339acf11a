"""Fuzzing of what adaptkit reads: `targets` says what, `run.py` does it guided by coverage, outside the test suite."""
