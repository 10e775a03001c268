"""The kit against what a user would pick instead, measured: ``python -m benchmarks --help``."""
