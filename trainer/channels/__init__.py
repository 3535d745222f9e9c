"""Which channels live or die together."""
