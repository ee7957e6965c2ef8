"""`proa-service`: what the container images run. One subcommand per process, settings from the
environment.

0 stopped or done; 1 an error while working; 2 wrong usage or settings.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from proa import __version__

# Where each one's `main` is, and what it does. Imported when asked for: no service needs the
# packages of another.
SERVICES = {
    "frontend": ("proa.frontend.main", "answer clients"),
    "encoder": ("proa.encoder.main", "encode groups of queries and run their parity"),
    "decoder": ("proa.decoder.main", "reconstruct missing predictions"),
    "worker": ("proa.worker.main", "run Triton with a packed model"),
    "store-agent": ("proa.store.agent", "run one shard of a store, beside its Redis or Valkey"),
    "store-coordinator": ("proa.store.coordinator", "say who runs which shard of a store"),
    "fetch": ("proa.cluster.fetch", "get a model's files, then end"),
    "smoke": ("proa.cluster.smoke", "ask every model a few queries, then end"),
    "chaos": ("proa_chaos.kubernetes.main", "run one experiment on a release, then end"),
}
_RUNS_ITSELF = ("worker", "chaos")
_FAILED = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run one service until it ends; returns its exit code. Wrong usage exits with 2."""
    name = str(_parser().parse_args(argv).service)
    try:
        from proa.runtime.serve import run

        start = import_module(SERVICES[name][0]).main
    except ModuleNotFoundError as exc:
        sys.stderr.write(
            f"proa-service {name}: the package {exc.name} is not installed;"
            " pip install 'proa[cluster]', for a worker 'proa[worker]', for a store 'proa[store]'\n"
        )
        return _FAILED
    return int(start()) if name in _RUNS_ITSELF else run(start, service=name)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="proa-service",
        description="Run one of proa's services; its settings come from the environment.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"proa {__version__}")
    services = parser.add_subparsers(
        title="services", metavar="SERVICE", dest="service", required=True
    )
    for name, (_, summary) in SERVICES.items():
        services.add_parser(name, help=summary, description=summary)
    return parser


if __name__ == "__main__":
    sys.exit(main())
