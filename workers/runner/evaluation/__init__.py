"""Held-out losses and samples of base and tuned model."""
