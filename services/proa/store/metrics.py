"""What an agent exports."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge

from proa.api.v1 import store_pb2
from proa.store.protocol import actions as ac
from proa.store.protocol.actions import Phase
from proa.store.protocol.agent import Agent
from proa.store.shell import Shell


class AgentMetrics:
    """Gauges read the agent when they are asked for; nothing is kept twice."""

    def __init__(self, registry: CollectorRegistry, shell: Shell) -> None:
        self._shell = shell
        self._decoded = Counter(
            "proa_store_rows_decoded_total", "Rows decoded from other shards", registry=registry
        )
        self._lost = Counter(
            "proa_store_rows_lost_found_total", "Rows given up: nothing can bring them back",
            registry=registry,
        )  # fmt: skip
        self._notes = Counter(
            "proa_store_notes_total", "What the agent has to say", ["kind"], registry=registry
        )
        self._mismatches = Counter(
            "proa_store_scrub_mismatches_total",
            "Rows that a scrub found not to be as they were written",
            registry=registry,
        )
        self.rows_decoded = 0
        self._memory = Gauge(
            "proa_store_memory_bytes", "Memory of the shard's server", registry=registry
        )
        self.memory_bytes = 0
        self._export(registry)
        starts = Gauge("proa_store_agent_starts", "Times the agent started", registry=registry)
        starts.set_function(lambda: shell.starts)

    def _export(self, registry: CollectorRegistry) -> None:
        gauges: tuple[tuple[Gauge, Callable[[Agent], float]], ...] = (
            (
                Gauge("proa_store_epoch", "Epoch of the shard's owner", registry=registry),
                lambda a: a.epoch,
            ),
            (
                Gauge("proa_store_open", "1: pushes are taken", registry=registry),
                lambda a: a.phase is Phase.OPEN,
            ),
            (Gauge("proa_store_rows_pending", "Rows still to decode", registry=registry), pending),
            (
                Gauge(
                    "proa_store_rows_lost", "Rows that nothing can bring back", registry=registry
                ),
                lost,
            ),
            (
                Gauge(
                    "proa_store_parity_incomplete",
                    "Parity blocks that do not include all their members",
                    registry=registry,
                ),
                lambda a: len(a.parity.incomplete),
            ),
            (
                Gauge(
                    "proa_store_outbox_versions", "Versions that wait for parity", registry=registry
                ),
                outbox,
            ),
            (
                Gauge(
                    "proa_store_parity_lag_versions",
                    "Versions the slowest parity is behind",
                    registry=registry,
                ),
                lag,
            ),
        )
        for one, read in gauges:
            one.set_function(self._of_agent(read))

    def noted(self, note: ac.Note) -> None:
        """Something happened."""
        self._notes.labels(note.kind).inc()
        if note.kind == "rows-decoded":
            self._decoded.inc(len(note.rows))
            self.rows_decoded += len(note.rows)
        elif note.kind == "data-lost":
            self._lost.inc(len(note.rows))

    def mismatched(self, rows: int) -> None:
        """A scrub has found these."""
        self._mismatches.inc(rows)

    def memory(self, used: int) -> None:
        self.memory_bytes = used
        self._memory.set(used)

    def report(self) -> store_pb2.ShardReport:
        """The same for `proa store status`. The coordinator adds shard and domain."""
        agent = self._shell.agent
        if agent is None:
            return store_pb2.ShardReport(state="starting", memory_bytes=self.memory_bytes)
        return store_pb2.ShardReport(
            state=agent.phase.value,
            epoch=agent.epoch,
            rows_pending=pending(agent),
            rows_lost=lost(agent),
            parity_incomplete=len(agent.parity.incomplete),
            outbox=outbox(agent),
            pushes=self._shell.pushes,
            memory_bytes=self.memory_bytes,
            rows_decoded=self.rows_decoded,
        )

    def _of_agent(self, read: Callable[[Agent], float]) -> Callable[[], float]:
        def value() -> float:
            agent = self._shell.agent
            return 0.0 if agent is None else float(read(agent))

        return value


def pending(agent: Agent) -> int:
    return sum(len(owned.pending) for owned in agent.owner.state.pending())


def lost(agent: Agent) -> int:
    return sum(len(owned.lost) for owned in agent.owner.state.blocks.values() if owned.lost)


def outbox(agent: Agent) -> int:
    return sum(len(owned.outbox) for owned in list(agent.owner.state.busy.values()))


def lag(agent: Agent) -> int:
    busy = list(agent.owner.state.busy.values())
    return max((owned.durable - owned.watermark() for owned in busy), default=0)
