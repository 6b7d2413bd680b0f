"""Workflows, shared by both kinds of worker, and the values that cross their boundary."""
