"""Following a job on a terminal: what is known of it, how that looks, and how it is kept up to date."""
