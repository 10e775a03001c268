"""Run one rank of a training run: ``python -m sam2kit.training.rank_worker RUN_DIR``.

torchrun starts this module (:mod:`sam2kit.training.launch`). It reads the configuration from
``RUN_DIR/config.yaml``.
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
    # All ranks log the same lines, so print those of rank 0 only, and the errors of every rank.
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
    # All files are written. A regular exit can crash in library threads that are still running
    # while the interpreter shuts down.
    os._exit(0)
