"""`python -m proa.decoder`."""

from __future__ import annotations

import sys

from proa.decoder.main import main
from proa.runtime.serve import run

sys.exit(run(main, service="decoder"))
