"""Run one rank of a training: ``python -m sam2kit.training.rank_worker RUN_DIR``.

torchrun starts it (:mod:`sam2kit.training.launch`). It reads the configuration of the training from
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
    # All ranks log the same lines; print those of rank 0, and errors of every rank.
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
    # Everything is written. A regular exit can abort in library threads that wake up while the
    # interpreter shuts down.
    os._exit(0)
