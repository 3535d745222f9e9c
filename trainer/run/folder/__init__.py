"""A run's folder: whose it is, what lies in it, and the state that a stopped run goes on from."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
