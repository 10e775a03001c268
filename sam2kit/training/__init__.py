"""Fine-tune a model with Lightning: losses, modules, gradient audit and planner."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
