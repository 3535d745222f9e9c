"""What a row trains: its name, its run's configuration, and what is cut before it."""
