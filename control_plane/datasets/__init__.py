"""Datasets: immutable bytes with a name."""
