"""What every service shares: statuses, interceptors, page tokens and cursors, conversion."""
