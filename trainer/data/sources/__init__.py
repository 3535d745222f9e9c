"""Sets that another library reads: torchvision's, the Hugging Face hub's, and a program's own."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
