"""An experiment as frozen dataclasses: what a file says, with every default filled in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

STORE_ACTIONS = ("kill-shard", "stale-disk")
"""Of a store's shards; `bitflip` of EMBEDDING is, too."""
ACTIONS = (
    "slow", "pause", "kill", "drain", "error", "drop", "partition", "cpu-hog", "bitflip",
    *STORE_ACTIONS,
)  # fmt: skip
PROA, CHAOS_MESH = "proa", "chaos-mesh"
"""Who acts a fault out: we ourselves, or Chaos Mesh."""
MODES = ("one", "all", "fixed", "fixed-percent", "random-max-percent")
EMBEDDING = "embedding"
SITES = ("output", "weight", "activation", EMBEDDING)
PARTS = ("both", "agent", "server")
"""What of a shard is killed."""
PHASES = ("before", "during", "after")
PROTECTIONS = ("none", "detect", "correct")
"""The modes of `protection`, each with all that the one before it does."""
ALL = "all"
"""The phases together, where a probe looks at the whole run."""


@dataclass(frozen=True)
class Expression:
    """One of a selector's expressionSelectors. `operator`: In, NotIn, Exists, DoesNotExist."""

    key: str
    operator: str
    values: tuple[str, ...] = ()


@dataclass(frozen=True)
class Selector:
    """Chaos Mesh's selector: a target is selected when all that is given holds. Empty: all are.

    `pods`: names by namespace. Locally every process is a pod of its name in namespace `local`.
    """

    namespaces: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    expressions: tuple[Expression, ...] = ()
    pods: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Choice:
    """Which of the selected targets: Chaos Mesh's `mode` and `value`."""

    selector: Selector = field(default_factory=Selector)
    mode: str = "one"
    value: int = 0


@dataclass(frozen=True)
class Parameters:
    """What an action needs to know; each action reads its own (`proa_chaos.file`).

    probability: share of the calls. program: the calls it hits, empty for all. how: of a
    pause, `calls` block or the `process` is stopped; of a kill in a cluster, `delete` or `evict`.
    site: where bits are flipped. load: percent of a CPU for each of `workers`. cordon: of a drain
    in a cluster, nothing new is scheduled on the node. what: of a shard is killed, one of PARTS.
    """

    delay_ms: int = 0
    probability: float = 1.0
    program: str = ""
    bits: int = 1
    site: str = SITES[0]
    how: str = "calls"
    workers: int = 1
    load: int = 100
    cordon: bool = False
    what: str = PARTS[0]


@dataclass(frozen=True)
class Fault:
    """What is done, to whom, from `at_s` of the phase `during` on.

    duration_s None: to the end of the phase; 0: once (only kills are done in no time). every_s:
    the choice is made anew so often, never the same twice running. peer: the other side of a
    partition.
    """

    name: str
    action: str
    choice: Choice
    at_s: float = 0.0
    duration_s: float | None = None
    every_s: float | None = None
    parameters: Parameters = field(default_factory=Parameters)
    peer: Choice | None = None
    backend: str = PROA

    @property
    def on_shards(self) -> bool:
        """Whether it is done to shards of a store, and to nothing else."""
        return self.action in STORE_ACTIONS or (
            self.action == "bitflip" and self.parameters.site == EMBEDDING
        )


@dataclass(frozen=True)
class StoreLoad:
    """Training of a store's rows: `workers` of them, each with its share of the `rows`, take steps
    of `batch` rows one after the other, `rate_hz` a second each at most; None: as fast as it goes.
    """

    rows: int = 20_000
    dim: int = 16
    batch: int = 256
    workers: int = 2
    rate_hz: float | None = None


@dataclass(frozen=True)
class Workload:
    """Open-loop load. `during_rate_hz` None: as before. `queries`: how many different ones.

    recovery_s: how long the system may take after the faults until all of it is ready again.
    store: rows are trained, and no model is asked.
    """

    model: str | None = None
    rate_hz: float = 20.0
    during_rate_hz: float | None = None
    before_s: float = 3.0
    during_s: float = 5.0
    after_s: float = 3.0
    recovery_s: float = 60.0
    deadline_ms: float = 1000.0
    inflight_max: int = 500
    queries: int = 32
    inputs: Path | None = None
    exact: bool = False
    store: StoreLoad | None = None

    def rate_in(self, phase: str) -> float:
        """Requests per second in `phase`."""
        if phase == "during" and self.during_rate_hz is not None:
            return self.during_rate_hz
        return self.rate_hz

    def length_s(self, phase: str) -> float:
        """Length of `phase`."""
        return {"before": self.before_s, "during": self.during_s, "after": self.after_s}[phase]


@dataclass(frozen=True)
class Probe:
    """A tolerance: `measure` in `phase` is at most, at least so much, or only of `allowed`.

    relative_to: the limits are factors of the same measure in that phase.
    """

    measure: str
    phase: str = "during"
    at_most: float | None = None
    at_least: float | None = None
    relative_to: str | None = None
    allowed: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        """`during p99Ms at most 3 x before`."""
        parts = [self.phase, self.measure]
        times = f" x {self.relative_to}" if self.relative_to else ""
        if self.at_least is not None:
            parts.append(f"at least {self.at_least:g}{times}")
        if self.at_most is not None:
            parts.append(f"at most {self.at_most:g}{times}")
        if self.allowed is not None:
            parts.append(f"only {', '.join(self.allowed) or 'none'}")
        return " ".join(parts)


@dataclass(frozen=True)
class Guard:
    """The experiment is stopped when `probe` fails over the last `window_s` seconds.

    Fewer than `samples_min` requests in the window say nothing.
    """

    probe: Probe
    window_s: float = 2.0
    samples_min: int = 20


@dataclass(frozen=True)
class Experiment:
    """One experiment. `expected`: the verdict that the library's test wants; `pool`: the
    redundancy.pool that it needs, if any; `protection`: the least protection.mode."""

    name: str
    title: str
    description: str
    hypothesis: tuple[Probe, ...]
    faults: tuple[Fault, ...] = ()
    tags: tuple[str, ...] = ()
    workload: Workload = field(default_factory=Workload)
    guards: tuple[Guard, ...] = ()
    expected: str = "Pass"
    pool: str | None = None
    protection: str = PROTECTIONS[0]
    path: Path = Path()
