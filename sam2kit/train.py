"""Run ``sam2kit train`` as ``python -m sam2kit.train``."""

import sys

from sam2kit.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(["train", *sys.argv[1:]]))
