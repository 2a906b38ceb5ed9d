"""Benchmarks: `python -m bench.run`. What is measured, and how: docs/benchmarks.md."""
