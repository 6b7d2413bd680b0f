"""Base models and adapters: vetting, importing, loading, running."""
