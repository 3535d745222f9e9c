"""The papers’ scores (no torch)."""
