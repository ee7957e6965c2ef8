"""Parts of the store's protocol, one at a time."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from proa.errors import InvalidRequest
from proa.store.protocol import messages as ms
from proa.store.protocol.actions import Persist, Received, Send, Ticked
from proa.store.protocol.cluster_map import ShardEntry, first_term
from proa.store.protocol.config import StoreConfig
from proa.store.protocol.coordinator import Coordinator
from proa.store.protocol.heard import FIRST_CLIENT, Heard
from proa.store.protocol.layout import Block, Layout
from proa.store.protocol.log import FORGET, NO_SESSIONS, Entry, Mark, Sessions, between, tail
from proa.store.protocol.records import pack, unpack

CONFIG = StoreConfig(detect_s=1.0, map_ttl_s=0.5)


# --- layout


@pytest.mark.parametrize(
    ("k", "r", "shards"), [(2, 1, 3), (4, 1, 5), (4, 1, 7), (4, 2, 6), (2, 2, 9)]
)
def test_parity_is_spread_evenly_and_no_stripe_meets_a_shard_twice(k: int, r: int, shards: int):
    layout = Layout.uniform(k=k, r=r, shards=shards, stripes=10 * shards, rows=1, width=1)
    count = Counter(block.stripe for s in range(shards) for block in layout.parity_of(s))
    assert set(count.values()) == {r}
    assert {len(layout.parity_of(s)) for s in range(shards)} == {10 * r}
    assert {len(layout.data_of(s)) for s in range(shards)} == {10 * k}
    for stripe in range(layout.stripes):
        assert len({layout.shard_of(stripe, p) for p in range(k + r)}) == k + r


@pytest.mark.parametrize("bad", [{"k": 0}, {"r": 3}, {"shards": 2}])
def test_a_layout_that_cannot_be_is_refused(bad: dict[str, int]):
    with pytest.raises(InvalidRequest, match=str(next(iter(bad.values())))):
        Layout.uniform(**{"k": 2, "r": 1, "shards": 3, "stripes": 1, "rows": 1, "width": 1} | bad)


# --- log


def entry(start: int, rows: list[int], byte: int) -> Entry:
    delta = np.full((len(rows), 2), byte, np.uint8)
    return Entry(start, start + 1, np.array(rows, np.intp), delta)


def test_deltas_of_one_source_telescope():
    log = [entry(3, [0, 2], 1), entry(4, [2], 2), entry(5, [1], 4)]
    rows = np.array([1, 2], np.intp)
    assert between(log, 3, 6, rows, 2).tolist() == [[4, 4], [3, 3]]
    assert between(log, 4, 5, rows, 2).tolist() == [[0, 0], [2, 2]]
    assert between(log, 5, 5, rows, 2).tolist() == [[0, 0], [0, 0]]
    assert between(tail(log, rows), 3, 6, rows, 2).tolist() == [[4, 4], [3, 3]]


def test_a_trimmed_log_says_that_it_does_not_reach():
    log = [entry(4, [0], 1), entry(5, [0], 1)]
    rows = np.array([0], np.intp)
    assert between(log, 3, 6, rows, 2) is None
    assert between(log, 4, 7, rows, 2) is None
    assert between([log[0], entry(6, [0], 1)], 4, 7, rows, 2) is None


def test_sessions_know_what_is_in_a_block_and_forget_what_is_undone():
    marks = [Mark(7, 3, 0), Mark(7, 5, 4)]
    sessions = NO_SESSIONS.add(marks)
    assert sessions.includes(7, 3)  # below the floor: it was answered
    assert sessions.includes(7, 5)
    assert not sessions.includes(7, 4)
    assert not sessions.includes(8, 0)
    assert not sessions.remove(marks[1:]).includes(7, 5)


def test_who_was_forgotten_is_forgotten_in_every_copy_also_when_it_is_undone():
    before = NO_SESSIONS.add([Mark(7, 3, 0), Mark(8, 1, 0)])
    marks = [Mark(7, FORGET, 0), Mark(9, 0, 0)]
    after = before.add(marks)
    assert not after.includes(7, 3)
    assert after.includes(8, 1)
    assert after.add([Mark(7, 4, 0)]).includes(7, 4)
    back = after.remove(marks)
    assert not back.includes(7, 3)
    assert not back.includes(9, 0)
    assert back.includes(8, 1)
    assert after.remove([Mark(7, 3, 0)]) == after  # of an entry before it was forgotten


def told_of(count: int) -> Sessions:
    """Clients 0, 1, and so on."""
    return NO_SESSIONS.add(Mark(FIRST_CLIENT + client, 0, 0) for client in range(count))


class Awake:
    """A Heard that is told of the time twice a second."""

    def __init__(self, kept: int, silent_s: float) -> None:
        self.heard, self.now = Heard(kept, silent_s), 50.0
        self.heard.tick(self.now)

    def run(self, seconds: int) -> None:
        for _ in range(2 * seconds):
            self.now += 0.5
            self.heard.tick(self.now)


def forgotten(heard: Heard, sessions: Sessions) -> list[int]:
    marks = heard.to_forget(sessions)
    assert {mark.step for mark in marks} <= {FORGET}
    return [mark.worker - FIRST_CLIENT for mark in marks]


def test_a_block_forgets_workers_beyond_its_limit_that_were_silent_for_long():
    awake = Awake(kept=4, silent_s=100.0)
    heard = awake.heard
    awake.run(99)
    assert forgotten(heard, told_of(10)) == []  # they may have been there before this owner was
    heard.note(FIRST_CLIENT)
    heard.note(FIRST_CLIENT + 9)
    awake.run(2)
    assert forgotten(heard, told_of(10)) == [1, 2, 3, 4, 5, 6]
    assert forgotten(heard, told_of(4)) == []
    assert forgotten(heard, told_of(5)) == [1]
    awake.run(98)
    assert 0 not in forgotten(heard, told_of(10))
    awake.run(1)
    assert forgotten(heard, told_of(5)) == [0]
    heard.note(5)
    assert list(heard._last) == [5]  # the others are silent whether it knows them or not


def test_sessions_and_workers_with_names_are_never_forgotten():
    awake = Awake(kept=0, silent_s=100.0)
    awake.run(200)
    sessions = NO_SESSIONS.add([Mark(20260711, 9, 9), Mark(FIRST_CLIENT - 1, 0, 0)])
    assert forgotten(awake.heard, sessions) == []


def test_an_owner_that_was_frozen_takes_nobody_for_silent():
    heard = Heard(kept=0, silent_s=100.0)
    heard.tick(0.0)
    heard.tick(5000.0)
    assert forgotten(heard, told_of(3)) == []


# --- records


def test_only_a_row_that_nobody_touched_is_zero():
    rows = np.array([0, 1, 2, 3], np.intp)
    good, bad = pack(np.array([[1, 2], [3, 4]], np.uint8))
    bad = bytes([bad[0] ^ 1]) + bad[1:]
    data, missing = unpack(rows, [None, None, good, bad], {1, 2, 3}, 2)
    assert data.tolist() == [[0, 0], [0, 0], [1, 2], [0, 0]]
    assert missing == {1, 3}


@pytest.mark.parametrize("bit", range(48))
def test_every_flipped_bit_is_noticed(bit: int):
    record = bytearray(pack(np.array([[9, 250]], np.uint8))[0])
    record[bit // 8] ^= 1 << bit % 8
    assert unpack(np.array([0]), [bytes(record)], {0}, 2)[1] == {0}


@pytest.mark.parametrize("length", [0, 1, 5, 7])
def test_a_record_of_another_length_is_an_erasure(length: int):
    assert unpack(np.array([0]), [bytes(length)], {0}, 2)[1] == {0}


# --- coordinator


def grants(coordinator: Coordinator, hello: ms.Hello, now: float = 0.0) -> list[ms.Grant]:
    actions = coordinator.handle(Received(f"p{hello.nonce}", hello), now)
    sends = [a.message for a in actions if isinstance(a, Send)]
    found = [m for m in sends if isinstance(m, ms.Grant)]
    if found and found[0].nonce == hello.nonce and len(actions) > 1:
        assert isinstance(actions[0], Persist), "said before it was kept"
    return found


def started() -> Coordinator:
    coordinator = Coordinator(2, CONFIG, 0.0)
    assert grants(coordinator, ms.Hello(0, 1, "a", 0)) == []
    both = grants(coordinator, ms.Hello(1, 2, "b", 0))
    assert [(g.shard, g.epoch, g.first) for g in both] == [(0, 1, True), (1, 1, True)]
    return coordinator


def tick(coordinator: Coordinator, begin: float, end: float) -> None:
    for now in np.arange(begin, end, 0.05):
        coordinator.handle(Ticked(), float(now))


def test_a_grant_that_was_lost_is_given_again():
    coordinator = started()
    (again,) = grants(coordinator, ms.Hello(0, 1, "a", 0))
    assert (again.epoch, again.first) == (1, True)


def test_an_agent_that_comes_back_to_the_same_disk_in_time_is_trusted():
    (grant,) = grants(started(), ms.Hello(0, 3, "a", 1), 0.1)
    assert (grant.epoch, grant.fresh, grant.trusted, grant.wait_s) == (2, True, True, 0.0)


def test_a_disk_that_never_heard_of_its_last_grant_is_not_trusted():
    (grant,) = grants(started(), ms.Hello(0, 3, "a", 0), 0.1)
    assert (grant.fresh, grant.trusted) == (False, False)


def test_a_shard_that_was_down_is_checked_even_on_its_own_disk():
    coordinator = started()
    tick(coordinator, 0.0, 1.0)
    coordinator.handle(Ticked(), 1.1)
    assert not coordinator.map.shards[0].up
    (grant,) = grants(coordinator, ms.Hello(0, 3, "a", 1), 1.2)
    assert (grant.fresh, grant.trusted) == (True, False)
    assert grant.wait_s == pytest.approx(0.4)


def test_another_disk_gets_the_shard_only_when_its_holder_is_silent():
    coordinator = started()
    tick(coordinator, 0.0, 0.5)
    assert grants(coordinator, ms.Hello(0, 3, "c", 1), 0.5) == []
    tick(coordinator, 0.5, 1.0)
    (grant,) = grants(coordinator, ms.Hello(0, 3, "c", 1), 1.1)
    assert (grant.epoch, grant.fresh, grant.trusted) == (2, False, False)
    assert grant.wait_s == CONFIG.map_ttl_s


def test_nobody_is_down_because_the_coordinator_itself_was_away():
    coordinator = started()
    tick(coordinator, 0.0, 0.2)
    tick(coordinator, 61.0, 61.3)
    assert all(entry.up for entry in coordinator.map.shards.values())
    assert grants(coordinator, ms.Hello(0, 3, "c", 1), 61.3) == []
    tick(coordinator, 61.3, 62.6)
    assert not any(entry.up for entry in coordinator.map.shards.values())


def test_a_restarted_coordinator_waits_until_agents_have_found_it():
    new = Coordinator(2, CONFIG, 5.0, started().map)
    tick(new, 5.0, 5.0 + 1.9 * CONFIG.detect_s)
    assert all(entry.up for entry in new.map.shards.values())
    tick(new, 5.0 + 1.9 * CONFIG.detect_s, 5.0 + 2.1 * CONFIG.detect_s)
    assert not any(entry.up for entry in new.map.shards.values())


def test_a_restarted_coordinator_goes_on_from_what_it_kept():
    old = started()
    new = Coordinator(2, CONFIG, 5.0, old.map)
    (grant,) = grants(new, ms.Hello(0, 3, "a", 1), 5.1)
    assert (grant.epoch, grant.first) == (2, False)
    assert grant.wait_s == pytest.approx(0.4), "clients may hold maps of the one before"


def test_parity_is_trusted_by_its_term():
    entry = ShardEntry(epoch=5, up=True, trust_since=4)
    assert entry.trusts(first_term(4))
    assert entry.trusts(first_term(4) + 3)
    assert not entry.trusts(first_term(3) + 3)
    assert not ShardEntry(epoch=5, up=False, trust_since=4).trusts(first_term(5))


def test_blocks_have_names():
    assert Block(3, 1) == (3, 1)
