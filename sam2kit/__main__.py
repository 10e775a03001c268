"""Run the command line as ``python -m sam2kit COMMAND``."""

from sam2kit.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
