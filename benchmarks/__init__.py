"""Benchmarks that compare sam2kit with its alternatives: ``python -m benchmarks --help``."""
