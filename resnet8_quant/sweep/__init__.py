"""Many runs: the Hydra callback and the summary table."""
