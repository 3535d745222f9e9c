"""Runs for several seeds and budgets by one command: what they share, and what they end with."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
