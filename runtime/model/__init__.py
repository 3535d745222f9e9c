"""A loaded model: its domains, its pool of sessions, and the plan of which answer."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
