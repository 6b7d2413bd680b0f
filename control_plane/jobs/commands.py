"""What holds for everything that can be asked of jobs."""

from __future__ import annotations

JOB_NAME_MAX = 128
"""Characters of a job's name."""
PRIORITY_DEFAULT = 500
"""The priority of a job that names none, unless the project's ceiling is lower."""
