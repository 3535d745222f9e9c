"""`prunion verify`: every claim found out again."""
