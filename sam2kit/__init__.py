"""Fine-tune SAM 2 on your own videos, from Python, notebooks or the command line.

Public names are imported from their modules on first use, so ``import sam2kit`` loads neither
torch, Hydra nor numpy. docs/library.md shows how to use them.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
