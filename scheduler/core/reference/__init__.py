"""`plan` by the simplest means: the rules to be read, and what the planner in use is tested against.

No heap, no index, nothing remembered: whatever is asked is counted anew from the leases, so that every rule stands in one
place and in words. It answers the same as the planner in use, a thousand times slower. Rules: docs/explanation/scheduling.md.
"""

from scheduler.core.reference.planner import plan

__all__ = ["plan"]
