"""Messages of the store on the wire: what goes in comes out, and junk is refused by name."""

from __future__ import annotations

import contextlib
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.store_twin import plain
from proa.api.v1 import store_pb2 as pb
from proa.errors import InvalidRequest
from proa.store.initial import Initialiser
from proa.store.optimisers import OPTIMISERS, SGD, Momentum
from proa.store.protocol import messages as ms
from proa.store.protocol.cluster_map import ClusterMap, ShardEntry
from proa.store.protocol.layout import Block
from proa.store.protocol.log import Entry, Mark, Sessions
from proa.store.protocol.storage import Applied
from proa.store.tables import Table
from proa.store.wire import from_proto, map_from_proto, map_to_proto, to_proto
from proa.store.wire_tables import (
    floats_from_bytes,
    ids_from_bytes,
    table_from_proto,
    table_to_proto,
)

# --- messages

NUMBERS = st.integers(-(2**63), 2**63 - 1)
SMALL = st.integers(0, 2**32 - 1)
SHARDS = st.integers(0, 2**31)
BLOCKS = st.builds(Block, SMALL, st.integers(0, 255))
SECONDS = st.floats(allow_nan=False)


@st.composite
def rows_and_data(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    rows = sorted(draw(st.sets(SMALL, max_size=5)))
    width = draw(st.integers(0, 9))
    raw = draw(st.binary(min_size=len(rows) * width, max_size=len(rows) * width))
    return np.array(rows, np.intp), np.frombuffer(raw, np.uint8).reshape(len(rows), width)


MARKS = st.builds(Mark, NUMBERS, NUMBERS, NUMBERS)
ENTRIES = st.builds(
    lambda start, to, change, marks: Entry(start, to, *change, tuple(marks)),
    NUMBERS, NUMBERS, rows_and_data(), st.lists(MARKS, max_size=3),
)  # fmt: skip
SESSIONS = st.builds(
    Sessions,
    st.dictionaries(NUMBERS, st.tuples(NUMBERS, st.frozensets(NUMBERS, max_size=3)), max_size=3),
)
APPLIED = st.builds(Applied, NUMBERS, NUMBERS, st.booleans(), SESSIONS)
PLACES = st.tuples(BLOCKS, st.integers(0, 255))
HELD = st.dictionaries(PLACES, st.tuples(NUMBERS, APPLIED), max_size=3)
ENTRY = st.builds(
    ShardEntry, NUMBERS, st.booleans(), st.text(max_size=9), NUMBERS, NUMBERS, NUMBERS
)
MAPS = st.builds(ClusterMap, NUMBERS, st.dictionaries(SHARDS, ENTRY, max_size=3), NUMBERS, NUMBERS)
PARTS = st.builds(lambda block, some: ms.Part(block, *some), BLOCKS, rows_and_data())
POSITION = st.integers(0, 255)
MESSAGES = {
    ms.Push: st.builds(
        ms.Push, NUMBERS, NUMBERS, NUMBERS, NUMBERS, st.lists(PARTS, max_size=3).map(tuple)
    ),
    ms.PushDone: st.builds(ms.PushDone, NUMBERS, NUMBERS),
    ms.PushRefused: st.builds(
        ms.PushRefused, NUMBERS, NUMBERS, st.sampled_from(ms.Refusal),
        st.lists(st.tuples(BLOCKS, SMALL), max_size=3).map(tuple),
    ),
    ms.Delta: st.builds(ms.Delta, BLOCKS, POSITION, NUMBERS, NUMBERS, ENTRIES, NUMBERS),
    ms.Ack: st.builds(ms.Ack, BLOCKS, POSITION, NUMBERS, NUMBERS, NUMBERS, st.booleans()),
    ms.Refused: st.builds(ms.Refused, SHARDS, NUMBERS),
    ms.Fence: st.builds(ms.Fence, SHARDS, NUMBERS, SMALL),
    ms.Fenced: st.builds(
        ms.Fenced, SHARDS, SHARDS, NUMBERS, NUMBERS, HELD, SMALL, st.booleans()
    ),
    ms.Adopt: st.builds(
        ms.Adopt, SHARDS, NUMBERS,
        st.dictionaries(PLACES, st.tuples(NUMBERS, NUMBERS), max_size=3), SMALL,
    ),
    ms.Adopted: st.builds(ms.Adopted, SHARDS, SHARDS, NUMBERS, HELD, SMALL),
    ms.Join: st.builds(
        ms.Join, BLOCKS, POSITION, NUMBERS, st.none() | st.tuples(NUMBERS, NUMBERS)
    ),
    ms.Snapshot: st.builds(
        lambda block, position, numbers, some, sessions: ms.Snapshot(
            block, position, *numbers, *some, sessions
        ),
        BLOCKS, POSITION, st.tuples(NUMBERS, NUMBERS, NUMBERS), rows_and_data(), SESSIONS,
    ),
    ms.Joined: st.builds(ms.Joined, BLOCKS, POSITION, NUMBERS, NUMBERS, NUMBERS),
    ms.Mismatch: st.builds(ms.Mismatch, BLOCKS, POSITION, NUMBERS),
    ms.Hello: st.builds(ms.Hello, SHARDS, NUMBERS, st.text(max_size=9), NUMBERS),
    ms.Grant: st.builds(
        ms.Grant, SHARDS, NUMBERS, NUMBERS, st.booleans(), st.booleans(), st.booleans(), SECONDS,
        MAPS,
    ),
    ms.Heartbeat: st.builds(ms.Heartbeat, SHARDS, NUMBERS, NUMBERS, NUMBERS),
    ms.MapAsked: st.builds(ms.MapAsked, SECONDS),
    ms.MapTold: st.builds(ms.MapTold, MAPS, st.none() | SECONDS),
}  # fmt: skip


def test_every_message_of_the_protocol_is_tried():
    assert set(MESSAGES) == set(get_args(ms.Message))


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
@settings(max_examples=25)
@given(data=st.data())
def test_a_message_comes_out_as_it_went_in(kind: type, data: st.DataObject):
    message = data.draw(MESSAGES[kind])
    raw = to_proto(message).SerializeToString()
    found = from_proto(pb.PeerMessage.FromString(raw))
    assert type(found) is kind
    assert plain(found) == plain(message)
    for array in (getattr(found, "rows", None), getattr(found, "data", None)):
        assert array is None or array.dtype in (np.intp, np.uint8)


@given(MAPS)
def test_a_map_of_its_own_comes_out_as_it_went_in(told: ClusterMap):
    assert map_from_proto(map_to_proto(told)) == told


def push_of(**change: object) -> pb.PeerMessage:
    message = to_proto(
        ms.Push(1, 2, 0, 1, (ms.Part(Block(0, 0), np.array([1, 5]), np.zeros((2, 4), np.uint8)),))
    )
    for name, value in change.items():
        setattr(message.push.parts[0].payload, name, value)
    return message


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rows": b"123"}, "part.payload.rows has 3 bytes"),
        ({"width": 5}, "part.payload.data has 8 bytes, not 2 rows of 5"),
        ({"rows": np.array([5, 1], "<u4").tobytes()}, "not ascending"),
        ({"rows": np.array([5, 5], "<u4").tobytes()}, "not ascending"),
        ({"width": 1 << 30, "data": b"", "rows": b""}, "rows of 1073741824"),
    ],
)  # fmt: skip
def test_junk_is_refused_by_name(change: dict[str, object], named: str):
    assert isinstance(from_proto(push_of()), ms.Push)
    with pytest.raises(InvalidRequest, match=named):
        from_proto(push_of(**change))


def test_what_is_not_known_is_refused():
    with pytest.raises(InvalidRequest, match="empty"):
        from_proto(pb.PeerMessage())
    refused = to_proto(ms.PushRefused(1, 2, ms.Refusal.INVALID))
    refused.push_refused.why = "TIRED"
    with pytest.raises(InvalidRequest, match="'TIRED'"):
        from_proto(refused)


@given(st.binary(max_size=60))
def test_random_bytes_are_a_message_or_refused(raw: bytes):
    message = pb.PeerMessage()
    try:
        message.ParseFromString(raw)
    except Exception:  # noqa: BLE001 - protobuf's own refusal
        return
    with contextlib.suppress(InvalidRequest):
        from_proto(message)


# --- tables


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_tables_come_out_as_they_went_in(kind: str):
    table = Table("a.b-c", 1 << 33, 64, OPTIMISERS[kind](0.1), Initialiser("normal", 5, std=0.25))
    assert table_from_proto(table_to_proto(table)) == table
    nesterov = Table("t", 1, 1, Momentum(0.1, nesterov=True))
    assert table_from_proto(table_to_proto(nesterov)) == nesterov


def test_a_table_may_leave_defaults_out():
    spec = pb.TableSpec(name="t", rows=3, dim=2)
    spec.optimiser.kind = "sgd"
    spec.optimiser.parameters["learning_rate"] = 0.5
    assert table_from_proto(spec) == Table("t", 3, 2, SGD(0.5))


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("rows", 0, "rows = 0"), ("dim", 0, "dim = 0"), ("name", "", "name"),
        ("optimiser.kind", "adamw", "optimiser.kind"), ("optimiser.nesterov", True, "nesterov"),
        ("init.kind", "he", "init.kind"),
    ],
)  # fmt: skip
def test_a_bad_table_is_refused_by_field(path: str, value: object, named: str):
    spec = table_to_proto(Table("t", 3, 2, SGD(0.5)))
    *parents, name = path.split(".")
    target = spec
    for parent in parents:
        target = getattr(target, parent)
    setattr(target, name, value)
    with pytest.raises(InvalidRequest, match=named):
        table_from_proto(spec)
    spec = table_to_proto(Table("t", 3, 2, SGD(0.5)))
    spec.init.parameters["gain"] = 2
    with pytest.raises(InvalidRequest, match="gain"):
        table_from_proto(spec)


def test_ids_and_rows_are_measured():
    ids = np.array([1 << 40, -1, 0])
    assert ids_from_bytes(ids.tobytes()).tolist() == ids.tolist()
    with pytest.raises(InvalidRequest, match="7 bytes"):
        ids_from_bytes(bytes(7))
    with pytest.raises(InvalidRequest, match="1048577 ids"):
        ids_from_bytes(bytes(8 * ((1 << 20) + 1)))
    assert floats_from_bytes(bytes(24), 2, 3).shape == (2, 3)
    with pytest.raises(InvalidRequest, match=r"gradients has 20 bytes, .* 2 rows, dim = 3"):
        floats_from_bytes(bytes(20), 2, 3)
