"""Run the staged notebooks unattended, either once or for each point of a grid."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
