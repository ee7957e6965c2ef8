"""`python -m proa.store agent | coordinator`."""

from __future__ import annotations

import sys

from proa.runtime.serve import run

if __name__ == "__main__":
    role = sys.argv[1] if len(sys.argv) == 2 else ""
    if role == "agent":
        from proa.store.agent import main
    elif role == "coordinator":
        from proa.store.coordinator import main
    else:
        sys.exit("usage: python -m proa.store agent|coordinator")
    sys.exit(run(main, service=f"store-{role}"))
