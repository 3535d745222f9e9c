"""The learning table: its rows, its results, its run files."""
