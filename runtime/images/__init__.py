"""Images in, batches out, as training evaluated them; labelled sets, which training reads too."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
