"""What workers write, fenced by the attempt."""
