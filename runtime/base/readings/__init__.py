"""What a machine says of itself while it works: energy, clocks and temperatures, and its GPU."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
