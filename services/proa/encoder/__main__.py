"""`python -m proa.encoder`."""

from __future__ import annotations

import sys

from proa.encoder.main import main
from proa.runtime.serve import run

sys.exit(run(main, service="encoder"))
