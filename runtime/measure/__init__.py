"""Bench, profile, doctor: what a person measures."""
