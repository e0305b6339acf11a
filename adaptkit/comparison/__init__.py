"""Compare runs: statistics, verdicts and the sentences that state them. No MLflow, no matplotlib."""
