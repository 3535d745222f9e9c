"""The learning table."""
