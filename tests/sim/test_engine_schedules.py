"""Random schedules: whatever is late, lost, doubled, failed or cancelled, the promises hold."""

from __future__ import annotations

import os
from collections import Counter

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
        covered.update({f"drill {k}": v for k, v in schedule.seen.drills.items()})
        covered.update({f"refused {k}": v for k, v in schedule.seen.refused.items()})
        covered.update({f"tied {k}": v for k, v in schedule.seen.ties.items()})
        covered["draining"] += schedule.seen.answered_while_draining
        covered["fillers"] += schedule.engine.state.stats.fillers
    return failures, covered


def test_ten_thousand_random_schedules_keep_every_promise():
    # In this process: a fork would take along the threads of gRPC that other tests started.
    failures, covered = play(range(FIRST_SEED, FIRST_SEED + SCHEDULES))
    assert not failures, f"{len(failures)} of {SCHEDULES}: " + "; ".join(failures[:5])
    # The schedules are worth something only if they reach every corner.
    for corner in ("worker", "retry", "replica", "hedge", "reconstructed", "fillers",
                   "fail DEADLINE_EXCEEDED", "fail RESOURCE_EXHAUSTED", "fail CANCELLED",
                   "fail UNAVAILABLE", "refused arrived", "refused waited", "drill worker",
                   "drill reconstructed", "draining", "tied sent", "tied taken back",
                   "group done", "group abandoned"):  # fmt: skip
        assert covered[corner] > 100, (corner, covered)
