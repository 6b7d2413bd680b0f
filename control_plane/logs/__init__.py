"""Logs and progress of running jobs."""
