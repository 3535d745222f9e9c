"""The command: a lazy group and the runtime’s own commands."""
