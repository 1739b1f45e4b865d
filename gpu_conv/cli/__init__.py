"""The command ``gpu-conv``."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the console script."""
    try:
        from .app import app
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in ("rich", "typer"):
            raise
        print(f"gpu-conv needs {missing}: pip install 'gpu-conv[cli]', or [demo] for everything", file=sys.stderr)
        sys.exit(2)
    app()
