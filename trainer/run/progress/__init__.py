"""What a run says as it goes: figures in files and in tools, a bar, a line for each epoch."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
