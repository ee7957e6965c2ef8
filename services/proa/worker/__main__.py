"""`python -m proa.worker`."""

from __future__ import annotations

import sys

from proa.worker.main import main

sys.exit(main())
