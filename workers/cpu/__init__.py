"""The CPU worker: every workflow, and the activities that hold no lease."""
