"""What a domain does to the shared weights: `W_d = g(W, θ_d)`, one file a method."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
