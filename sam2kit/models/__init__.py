"""Build SAM 2 as a module that tracks clips; load, save and export its weights."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
