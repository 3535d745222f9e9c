"""What needs nothing but numpy: files, checked JSON, machine, timing, memory."""
