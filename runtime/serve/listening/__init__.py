"""Where a server listens: its addresses, the signals it follows, processes that share its ports."""
