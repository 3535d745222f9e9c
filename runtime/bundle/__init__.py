"""The formats on disk, the device profile too (a bundle of a latency budget holds one)."""
