"""What there is to schedule on."""
