"""What measures the figures of docs/benchmarks.md. Each prints a ceiling measured in the same run."""
