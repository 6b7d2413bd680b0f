"""What may pass and what it may cost, and why: functions over values, without any transport."""
