"""The limits and times of the protocol."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """Times in seconds. No promise depends on them but two: a client must not use a map older than
    `map_ttl_s`, by its own clock, counted from when it asked for it (facts ecrm F8, F15), and must
    not send a push again that it did not send for `worker_silent_s` (see `heard`)."""

    resend_s: float = 0.2
    heartbeat_s: float = 0.25
    # A shard whose heartbeat is missing for so long is declared down. Pushes that need its parity
    # wait for that, and then until no client uses a map from before: 2 s in all.
    detect_s: float = 1.2
    map_ttl_s: float = 0.7
    # Pushes that wait in an agent; beyond, they are refused as OVERLOADED.
    pushes_max: int = 256
    # Pushes applied in one commit.
    round_max: int = 32
    # Versions of a block that may wait for its parity; beyond, its pushes are OVERLOADED (F14).
    outbox_max: int = 64
    # Workers that a block remembers, however long they are silent.
    workers_kept: int = 16
    # Beyond so many, clients are forgotten that were silent for so long: a day.
    worker_silent_s: float = 86400.0
    # Rows decoded at once when no push waits for them.
    sweep_rows: int = 1024
    # Blocks in which they are.
    sweep_blocks: int = 16
    # Rows that the sweep decodes in a second; 0: no limit.
    sweep_rows_per_s_max: int = 0
    # Blocks that are compared and adopted at a time when an owner opens.
    open_blocks: int = 1024
    # Parity blocks that are collected anew at a time.
    joins_max: int = 64
    # So often a decode must find too little, everybody having answered, before rows are given up.
    decode_tries: int = 3
