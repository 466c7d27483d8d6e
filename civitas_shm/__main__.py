"""`python -m civitas_shm` and the console script `civitas-shm`: the same command line."""

from __future__ import annotations

import sys

from .cli import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
