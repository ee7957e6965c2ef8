"""`python -m proa` is the command `proa`."""

from __future__ import annotations

import sys

from proa.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
