"""Telling other services that jobs ended: by HTTP POST, signed as Standard Webhooks 1.0 prescribes, at least once."""
