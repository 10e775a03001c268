"""sam2kit: a notebook-first research kit for fine-tuning SAM 2 on your own videos.

Importing the package costs nothing: no torch, no configuration, no logging is touched until a
submodule is imported.
"""

__version__ = "0.1.0"
