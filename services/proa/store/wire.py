"""The protocol's messages as protobuf, and back: nothing is lost on the way, not a bit.

What a peer can get wrong (lengths, rows out of order, unknown refusals) raises InvalidRequest with
the field's name. Arrays that come out are read-only views of the message's bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from proa.api.v1 import store_pb2 as pb
from proa.errors import InvalidRequest
from proa.store.gf256 import Bytes
from proa.store.protocol import messages as ms
from proa.store.protocol.cluster_map import ClusterMap, ShardEntry
from proa.store.protocol.layout import Block
from proa.store.protocol.log import Entry, Mark, Rows, Sessions
from proa.store.protocol.storage import Applied

WIDTH_MAX = 1 << 20


def to_proto(message: ms.Message) -> pb.PeerMessage:
    """One message."""
    kind = type(message)
    found = pb.PeerMessage()
    if kind in _PLAIN:
        _write_plain(message, getattr(found, _PLAIN[kind]))
    else:
        name, write = _WRITERS[kind]
        target = getattr(found, name)
        target.SetInParent()
        write(message, target)
    return found


def from_proto(message: pb.PeerMessage) -> ms.Message:
    """Errors: InvalidRequest."""
    name = message.WhichOneof("message")
    if name is None:
        raise InvalidRequest("a peer's message is empty, or of a kind that is not known here")
    value = getattr(message, name)
    if name in _PLAIN_READERS:
        plain: ms.Message = _read_plain(_PLAIN_READERS[name], value)
        return plain
    return _READERS[name](value)


# --- messages of numbers, texts and a block alone

_PLAIN: dict[type, str] = {
    ms.PushDone: "push_done",
    ms.Ack: "ack",
    ms.Refused: "refused",
    ms.Fence: "fence",
    ms.Joined: "joined",
    ms.Mismatch: "mismatch",
    ms.Hello: "hello",
    ms.Heartbeat: "heartbeat",
    ms.MapAsked: "map_asked",
}
_PLAIN_READERS = {name: kind for kind, name in _PLAIN.items()}
_NAMES = {kind: tuple(field.name for field in fields(kind)) for kind in _PLAIN}


def _write_plain(message: Any, target: Any) -> None:
    target.SetInParent()
    for name in _NAMES[type(message)]:
        value = getattr(message, name)
        if isinstance(value, Block):
            _write_block(value, getattr(target, name))
        else:
            setattr(target, name, value)


def _read_plain(kind: type, value: Any) -> Any:
    return kind(
        **{
            name: _block(value.block) if name == "block" else getattr(value, name)
            for name in _NAMES[kind]
        }
    )


# --- parts of messages


def _write_block(block: Block, target: Any) -> None:
    target.stripe, target.position = block


def _block(value: Any) -> Block:
    return Block(value.stripe, value.position)


def _write_rows(rows: Rows, data: Bytes, target: Any) -> None:
    target.rows = rows.astype("<u4").tobytes()
    target.data = data.tobytes()
    target.width = data.shape[1]


def _rows(value: Any, what: str) -> tuple[Rows, Bytes]:
    if len(value.rows) % 4:
        raise InvalidRequest(f"{what}.rows has {len(value.rows)} bytes: not of uint32")
    rows = np.frombuffer(value.rows, "<u4").astype(np.intp)
    if value.width > WIDTH_MAX or len(value.data) != len(rows) * value.width:
        raise InvalidRequest(
            f"{what}.data has {len(value.data)} bytes, not {len(rows)} rows of {value.width}"
        )
    if not (rows[1:] > rows[:-1]).all():
        raise InvalidRequest(f"{what}.rows are not ascending")
    return rows, np.frombuffer(value.data, np.uint8).reshape(len(rows), value.width)


def _write_sessions(sessions: Sessions, target: Any) -> None:
    for worker, (floor, steps) in sessions.workers.items():
        target.workers.add(worker=worker, floor=floor, steps=sorted(steps))


def _sessions(value: Any) -> Sessions:
    return Sessions({one.worker: (one.floor, frozenset(one.steps)) for one in value.workers})


def _write_applied(applied: Applied, target: Any) -> None:
    target.epoch, target.version = applied.epoch, applied.version
    target.joined = applied.joined
    _write_sessions(applied.sessions, target.sessions)


def _applied(value: Any) -> Applied:
    return Applied(value.epoch, value.version, value.joined, _sessions(value.sessions))


def _write_entry(entry: Entry, target: Any) -> None:
    target.start, target.to = entry.start, entry.to
    _write_rows(entry.rows, entry.delta, target.change)
    for mark in entry.marks:
        target.marks.add(worker=mark.worker, step=mark.step, floor=mark.floor)


def _entry(value: Any) -> Entry:
    marks = tuple(Mark(mark.worker, mark.step, mark.floor) for mark in value.marks)
    return Entry(value.start, value.to, *_rows(value.change, "entry.change"), marks)


def _write_map(told: ClusterMap, target: Any) -> None:
    target.version, target.stripes, target.settled = told.version, told.stripes, told.settled
    for shard, entry in told.shards.items():
        target.shards.add(
            shard=shard,
            epoch=entry.epoch,
            up=entry.up,
            disk=entry.disk,
            disk_since=entry.disk_since,
            trust_since=entry.trust_since,
            nonce=entry.nonce,
        )


def _map(value: Any) -> ClusterMap:
    shards = {
        one.shard: ShardEntry(
            one.epoch, one.up, one.disk, one.disk_since, one.trust_since, one.nonce
        )
        for one in value.shards
    }
    return ClusterMap(value.version, shards, value.stripes, value.settled)


def map_to_proto(told: ClusterMap) -> pb.ClusterMapTold:
    """For GetMap."""
    found = pb.ClusterMapTold()
    _write_map(told, found)
    return found


def map_from_proto(value: pb.ClusterMapTold) -> ClusterMap:
    """As it was told."""
    return _map(value)


Held = Mapping[tuple[Block, int], tuple[int, Applied]]


def _write_held(held: Held, target: Any) -> None:
    for (block, position), (term, applied) in held.items():
        one = target.held.add(position=position, term=term)
        _write_block(block, one.block)
        _write_applied(applied, one.applied)


def _held(values: Iterable[Any]) -> dict[tuple[Block, int], tuple[int, Applied]]:
    return {(_block(one.block), one.position): (one.term, _applied(one.applied)) for one in values}


# --- the other messages


def _write_push(push: ms.Push, target: Any) -> None:
    target.worker, target.step = push.worker, push.step
    target.floor, target.epoch = push.floor, push.epoch
    for part in push.parts:
        one = target.parts.add()
        _write_block(part.block, one.block)
        _write_rows(part.rows, part.payload, one.payload)


def _read_push(value: Any) -> ms.Push:
    parts = tuple(
        ms.Part(_block(one.block), *_rows(one.payload, "part.payload")) for one in value.parts
    )
    return ms.Push(value.worker, value.step, value.floor, value.epoch, parts)


def _write_refused(refused: ms.PushRefused, target: Any) -> None:
    target.worker, target.step = refused.worker, refused.step
    target.why = refused.why.name
    for block, row in refused.lost:
        _write_block(block, target.lost.add(row=row).block)


def _read_refused(value: Any) -> ms.PushRefused:
    if value.why not in ms.Refusal.__members__:
        raise InvalidRequest(f"why = {value.why!r} is no reason that is known here")
    lost = tuple((_block(one.block), one.row) for one in value.lost)
    return ms.PushRefused(value.worker, value.step, ms.Refusal[value.why], lost)


def _write_delta(delta: ms.Delta, target: Any) -> None:
    _write_block(delta.block, target.block)
    target.position, target.term = delta.position, delta.term
    target.epoch, target.watermark = delta.epoch, delta.watermark
    _write_entry(delta.entry, target.entry)


def _read_delta(value: Any) -> ms.Delta:
    return ms.Delta(
        _block(value.block), value.position, value.term, value.epoch, _entry(value.entry),
        value.watermark,
    )  # fmt: skip


def _write_fenced(fenced: ms.Fenced, target: Any) -> None:
    target.shard, target.source = fenced.shard, fenced.source
    target.epoch, target.stamp = fenced.epoch, fenced.stamp
    target.part, target.more = fenced.part, fenced.more
    _write_held(fenced.held, target)


def _read_fenced(value: Any) -> ms.Fenced:
    return ms.Fenced(
        value.shard, value.source, value.epoch, value.stamp, _held(value.held), value.part,
        value.more,
    )  # fmt: skip


def _write_adopt(adopt: ms.Adopt, target: Any) -> None:
    target.source, target.epoch, target.part = adopt.source, adopt.epoch, adopt.part
    for (block, position), (term, version) in adopt.versions.items():
        one = target.versions.add(position=position, term=term, version=version)
        _write_block(block, one.block)


def _read_adopt(value: Any) -> ms.Adopt:
    versions = {
        (_block(one.block), one.position): (one.term, one.version) for one in value.versions
    }
    return ms.Adopt(value.source, value.epoch, versions, value.part)


def _write_adopted(adopted: ms.Adopted, target: Any) -> None:
    target.shard, target.source, target.epoch = adopted.shard, adopted.source, adopted.epoch
    target.part = adopted.part
    _write_held(adopted.held, target)


def _read_adopted(value: Any) -> ms.Adopted:
    return ms.Adopted(value.shard, value.source, value.epoch, _held(value.held), value.part)


def _write_join(join: ms.Join, target: Any) -> None:
    _write_block(join.block, target.block)
    target.position, target.term = join.position, join.term
    if join.have is not None:
        target.have.SetInParent()
        target.have.epoch, target.have.version = join.have


def _read_join(value: Any) -> ms.Join:
    have = (value.have.epoch, value.have.version) if value.HasField("have") else None
    return ms.Join(_block(value.block), value.position, value.term, have)


def _write_snapshot(told: ms.Snapshot, target: Any) -> None:
    _write_block(told.block, target.block)
    target.position, target.term = told.position, told.term
    target.epoch, target.version = told.epoch, told.version
    _write_rows(told.rows, told.data, target.content)
    _write_sessions(told.sessions, target.sessions)


def _read_snapshot(value: Any) -> ms.Snapshot:
    rows, data = _rows(value.content, "snapshot.content")
    return ms.Snapshot(
        _block(value.block), value.position, value.term, value.epoch, value.version, rows, data,
        _sessions(value.sessions),
    )  # fmt: skip


def _write_grant(grant: ms.Grant, target: Any) -> None:
    for name in ("shard", "nonce", "epoch", "first", "fresh", "trusted", "wait_s"):
        setattr(target, name, getattr(grant, name))
    _write_map(grant.map, target.map)


def _read_grant(value: Any) -> ms.Grant:
    return ms.Grant(
        value.shard, value.nonce, value.epoch, value.first, value.fresh, value.trusted,
        value.wait_s, _map(value.map),
    )  # fmt: skip


def _write_told(told: ms.MapTold, target: Any) -> None:
    _write_map(told.map, target.map)
    if told.asked_s is not None:
        target.asked_s = told.asked_s


def _read_told(value: Any) -> ms.MapTold:
    return ms.MapTold(_map(value.map), value.asked_s if value.HasField("asked_s") else None)


_WRITERS: dict[type, tuple[str, Callable[[Any, Any], None]]] = {
    ms.Push: ("push", _write_push),
    ms.PushRefused: ("push_refused", _write_refused),
    ms.Delta: ("delta", _write_delta),
    ms.Fenced: ("fenced", _write_fenced),
    ms.Adopt: ("adopt", _write_adopt),
    ms.Adopted: ("adopted", _write_adopted),
    ms.Join: ("join", _write_join),
    ms.Snapshot: ("snapshot", _write_snapshot),
    ms.Grant: ("grant", _write_grant),
    ms.MapTold: ("map_told", _write_told),
}
_READERS: dict[str, Callable[[Any], ms.Message]] = {
    "push": _read_push,
    "push_refused": _read_refused,
    "delta": _read_delta,
    "fenced": _read_fenced,
    "adopt": _read_adopt,
    "adopted": _read_adopted,
    "join": _read_join,
    "snapshot": _read_snapshot,
    "grant": _read_grant,
    "map_told": _read_told,
}
