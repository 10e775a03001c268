"""Import MuJoCo with its software renderer, and say what to install where that fails."""

from __future__ import annotations

import os

# Triton, which torchvision loads, and Mesa each bring a copy of LLVM. Importing Triton after Mesa
# crashes the process.
import torchvision  # noqa: F401

from sam2kit.utils.errors import DataError

# Render without a display or a GPU; a value that is already set wins. One thread per process,
# because clips are rendered by several processes.
os.environ.setdefault("MUJOCO_GL", "osmesa")
os.environ.setdefault("LP_NUM_THREADS", "0")

EXTRA_HINT = "install the packages of the renderer with: pip install 'sam2kit[render]'"
OSMESA_HINT = (
    "install Mesa's software renderer, on Debian and Ubuntu with: apt install libosmesa6; or set "
    "MUJOCO_GL=egl on a machine with a GPU"
)

try:
    import mujoco
except ModuleNotFoundError as error:
    raise DataError(f"MuJoCo cannot be imported ({error})", hint=EXTRA_HINT) from None
except (AttributeError, ImportError, OSError, RuntimeError) as error:
    # The loader of OpenGL fails in many ways.
    raise DataError(f"MuJoCo found no OpenGL library ({error})", hint=OSMESA_HINT) from None

try:
    import dm_control  # noqa: F401  its wheel contains the models
except ImportError as error:
    raise DataError(f"dm_control cannot be imported ({error})", hint=EXTRA_HINT) from None

__all__ = ["OSMESA_HINT", "mujoco"]
