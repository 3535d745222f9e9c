"""The masked network, its accuracy and its checkpoint."""
