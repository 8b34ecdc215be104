"""Judging models: accuracy with its statistics, latency, and the kernels that really run."""
