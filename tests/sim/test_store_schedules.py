"""Random schedules of the store: whatever is lost, doubled, late, killed or stale, it promises.

An acknowledged push survives any r losses bit by bit and exactly once, an unacknowledged one is
atomic per block, nothing is answered with a default in place of a lost row (facts ecrm C7).
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace

import pytest

from fakes.store_ablations import ABLATIONS, GHOSTS, HALF_SENT, LATE_PARITY
from fakes.store_faults import STEPS, Mix
from fakes.store_world import World
from proa.store.protocol.actions import Action
from proa.store.protocol.agent import Agent
from proa.store.protocol.coordinator import Coordinator

FIRST_SEED = int(os.environ.get("PROA_TEST_SEED", "0"))
SCHEDULES = int(os.environ.get("PROA_TEST_SCHEDULES", "10000"))
PARTS = min(4, SCHEDULES)  # each within the time that a test may take
TOO_MANY = Mix(beyond=True, strikes=1)
LONG = Mix(busy_s=0.6, strikes=14, pushes=60, reads=20, clients=3)
# Blocks forget workers that are silent for longer than any of these clients waits.
FORGETFUL = Mix(
    busy_s=1.2, strikes=10, pushes=60, reads=10, clients=6, lossy=0.05, workers_kept=1,
    worker_silent_s=0.3,
)  # fmt: skip
# Parity that was lost is collected at 5 rows a second, most of what it is sent gets lost.
PACED = Mix(
    faults=("wipe",), strikes=2, steps=(), busy_s=1.0, pushes=40, reads=0, clients=3, lossy=0.0,
    doubled=0.0, slow=0.0, tables=0.0, snapshots_lost=0.7, sweep_rows_per_s_max=5,
)  # fmt: skip
WAITED_S_MAX = 0.6
REPLAY = (
    "PROA_TEST_SEED={seed} PROA_TEST_SCHEDULES=1 python -m pytest tests/sim/test_store_schedules.py"
)


def play(
    seeds: range,
    mix: Mix | None = None,
    agent_class: type[Agent] = Agent,
    r: int | None = None,
) -> tuple[dict[int, str], Counter[str]]:
    """What went wrong, by seed, and what was seen."""
    failures: dict[int, str] = {}
    covered: Counter[str] = Counter()
    for seed in seeds:
        world = World(seed, mix=mix, agent_class=agent_class, r=r)
        try:
            world.run()
        except Exception as exc:  # noqa: BLE001 - the seed is what the reader needs
            failures[seed] = f"{type(exc).__name__}: {exc}"
        covered.update(world.count)
    return failures, covered


def report(failures: dict[int, str], count: int) -> str:
    first = [
        f"seed {seed}: {what}\n  {REPLAY.format(seed=seed)}"
        for seed, what in list(failures.items())[:5]
    ]
    return "\n".join([f"{len(failures)} of {count} schedules failed", *first])


@pytest.mark.parametrize("part", range(PARTS))
def test_ten_thousand_random_schedules_keep_every_promise(part: int):
    count = -(-SCHEDULES // PARTS)
    seeds = range(FIRST_SEED + part * count, FIRST_SEED + (part + 1) * count)
    failures, covered = play(seeds)
    assert not failures, report(failures, count)
    if count < 1000:
        return
    # The schedules are worth something only if they reach every corner.
    for corner in (*(f"step {step}" for step in STEPS), "fault agent", "fault wipe", "fault stale",
                   "fault ghost", "fault pause", "fault rot", "fault coordinator", "fault client",
                   "rebuild", "rows-decoded", "snapshot-sent", "parity-reset", "read degraded",
                   "grow", "settled", "refused NOT_OWNER",
                   "restart: a later owner has fenced this one",
                   "restart: another process may have this shard"):  # fmt: skip
        assert covered[corner] > count / 500, (corner, covered)


@pytest.mark.parametrize("seed", [5013198, 5033742])
def test_a_row_that_rots_while_a_shard_begins_harms_nothing(seed: int):
    """Its block was reset, and then written again as it had been; or never known to be empty."""
    failures, _ = play(range(seed, seed + 1))
    assert not failures


@pytest.mark.parametrize(
    "mix", [GHOSTS, LATE_PARITY, HALF_SENT, LONG], ids=["ghosts", "late", "half", "long"]
)
def test_worse_worlds_do_not_trouble_the_whole_protocol(mix: Mix):
    """Those made to catch ablations, and histories in which one fault follows another."""
    seeds = range(FIRST_SEED, FIRST_SEED + 150)
    failures, _ = play(seeds, mix)
    assert not failures, report(failures, len(seeds))


def test_what_a_block_forgets_is_not_pushed_again():
    seeds = range(FIRST_SEED, FIRST_SEED + 120)
    failures, covered = play(seeds, FORGETFUL)
    assert not failures, report(failures, len(seeds))
    assert covered["forgotten"] > 500


def test_blocks_that_forget_too_soon_apply_pushes_twice():
    """A test of the one above."""
    failures, _ = play(range(FIRST_SEED, FIRST_SEED + 60), replace(FORGETFUL, worker_silent_s=0.0))
    assert len([what for what in failures.values() if "applied twice" in what]) > 20


def test_pushes_do_not_wait_for_the_sweep():
    """An owner counts on a parity block that never got what it sent: the first push asks again."""
    waited: dict[int, float] = {}
    for seed in range(FIRST_SEED, FIRST_SEED + 60):
        world = World(seed, mix=PACED)
        world.run()
        waited[seed] = world.waited_s
    late = {seed: waited_s for seed, waited_s in waited.items() if waited_s > WAITED_S_MAX}
    assert not late, f"seconds that pushes waited, by seed: {late}"


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_ablation_fails_in_most_schedules(name: str):
    """Tests of the test: without one ingredient of the protocol, the oracle finds harm."""
    agent_class, mix, r = ABLATIONS[name]
    failures, _ = play(range(FIRST_SEED, FIRST_SEED + 150), mix, agent_class, r)
    broken = [what for what in failures.values() if what.startswith("Violation")]
    assert len(broken) > 75, f"{name}: caught in {len(broken)} of 150"


def settle_at_once(coordinator: Coordinator, stripes: int) -> list[Action]:
    """Coordinator.extend without the barrier."""
    if stripes > coordinator.map.stripes:
        coordinator._change(coordinator.map.shards, stripes, stripes)
        coordinator._publish()
    out, coordinator._out = coordinator._out, []
    return out


def test_tables_used_before_all_shards_have_them_are_lost(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Coordinator, "extend", settle_at_once)
    failures, covered = play(range(FIRST_SEED, FIRST_SEED + 150))
    assert len(failures) > covered["settled"] / 4, (len(failures), covered["settled"])
    assert any("given up" in what for what in failures.values())


def test_more_than_r_losses_end_in_data_lost_with_ids():
    """Some rows are gone, and said to be; nobody gets anything in their place."""
    seeds = range(FIRST_SEED, FIRST_SEED + 300)
    failures, covered = play(seeds, TOO_MANY)
    assert not failures, report(failures, len(seeds))
    assert covered["data-lost"] > 100
    assert covered["data lost"] > 100


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_hundred_thousand_more_schedules():
    seeds = range(10**6, 10**6 + 100_000)
    failures, _ = play(seeds)
    assert not failures, report(failures, len(seeds))
