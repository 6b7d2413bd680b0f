"""What may pass, and why: functions over values, without any transport."""
