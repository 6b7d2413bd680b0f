"""What the scheduler sees, why what waits does, and what would become of a change."""
