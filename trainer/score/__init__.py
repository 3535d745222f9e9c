"""What a finished run is worth: the papers' scores and a verdict; needs no torch."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
