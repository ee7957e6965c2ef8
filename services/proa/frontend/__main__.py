"""`python -m proa.frontend`."""

from __future__ import annotations

import sys

from proa.frontend.main import main
from proa.runtime.serve import run

sys.exit(run(main, service="frontend"))
