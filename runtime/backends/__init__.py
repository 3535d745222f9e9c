"""A session by a backend’s name."""
