"""Datasets: rows, their faults, their split and their tokens."""
