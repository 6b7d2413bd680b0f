"""Base models and model versions."""
