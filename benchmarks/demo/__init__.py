"""`prunion demo`."""
