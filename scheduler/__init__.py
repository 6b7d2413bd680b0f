"""The scheduler: a pure core that decides, and the shell around it that reads, writes and dispatches."""
