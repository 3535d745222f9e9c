"""Requests of many domains become batches: a bounded, fair queue, and what feeds and empties it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
