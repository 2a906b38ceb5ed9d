"""The report of a batch: one HTML file that needs nothing else."""

from streams.report.page import render

__all__ = ["render"]
