"""One of several training processes: ``python -m sam2kit.training.rank_worker RUN_DIR``.

Started by torchrun (:mod:`sam2kit.training.launch`); trains as ``config.yaml`` in RUN_DIR says.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from loguru import logger

from sam2kit.config.loading import load_config
from sam2kit.training.trainer import fit
from sam2kit.utils.errors import SAM2KitError
from sam2kit.utils.processes import end_with_parent

if __name__ == "__main__":
    end_with_parent()
    level = "INFO" if os.environ["RANK"] == "0" else "ERROR"
    form = "{time:HH:mm:ss} {message}"
    run_dir = Path(sys.argv[1])
    config = load_config(run_dir / "config.yaml")
    logger.configure(handlers=[{"sink": sys.stderr, "level": level, "format": form}])
    try:
        fit(config, run_dir)
    except SAM2KitError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # all is written, and threads of libraries that wake while Python ends abort it
