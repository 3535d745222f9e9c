"""The run file: TOML in, checked frozen dataclasses out."""
