"""Many runs: what a sweep varies, which trials that makes, and who runs them."""
