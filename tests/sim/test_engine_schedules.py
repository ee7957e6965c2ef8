"""Random schedules: whatever is late, lost, doubled, failed or cancelled, the promises hold."""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

from fakes.schedule import Schedule

SCHEDULES = 10_000
FIRST_SEED = int(os.environ.get("PROA_TEST_SEED", "0"))


def play(seeds: range) -> tuple[list[str], Counter[str]]:
    failures: list[str] = []
    covered: Counter[str] = Counter()
    for seed in seeds:
        schedule = Schedule(seed)
        try:
            schedule.run()
        except Exception as exc:  # noqa: BLE001 - the seed is what the reader needs
            failures.append(f"seed {seed}: {type(exc).__name__}: {exc}")
            continue
        covered.update(schedule.engine.state.stats.answers)
        covered.update({f"fail {k}": v for k, v in schedule.engine.state.stats.failed.items()})
        covered.update({f"group {k}": v for k, v in schedule.engine.state.stats.groups.items()})
        covered["fillers"] += schedule.engine.state.stats.fillers
    return failures, covered


def test_ten_thousand_random_schedules_keep_every_promise():
    step = 500
    ranges = [range(s, s + step) for s in range(FIRST_SEED, FIRST_SEED + SCHEDULES, step)]
    with ProcessPoolExecutor(max_workers=2) as pool:
        results = list(pool.map(play, ranges))
    failures = [failure for failed, _ in results for failure in failed]
    assert not failures, f"{len(failures)} of {SCHEDULES}: " + "; ".join(failures[:5])
    covered = sum((c for _, c in results), Counter())
    # The schedules are worth something only if they reach every corner.
    for corner in ("worker", "retry", "replica", "hedge", "reconstructed", "fillers",
                   "fail DEADLINE_EXCEEDED", "fail RESOURCE_EXHAUSTED", "fail CANCELLED",
                   "group done", "group abandoned"):  # fmt: skip
        assert covered[corner] > 100, (corner, covered)
