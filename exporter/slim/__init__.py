"""Cutting channels out of the torch network."""
