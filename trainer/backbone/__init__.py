"""A network by name, as a flat graph of ATen operations."""
