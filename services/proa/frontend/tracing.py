"""Which stories are told, and how: as spans, and as one line in the log.

A story is told if it was sampled before it began, or if it is notable: reconstructed, failed, won
by a hedge, slow. So the interesting ones are all there, whatever the sampling.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable

from prometheus_client import Counter

from proa.dispatch.actions import Source
from proa.frontend.auth import Bucket
from proa.frontend.history import in_force
from proa.frontend.stories import CANCELLED, Decoding, Part, Row, Story, Try
from proa.spec import CodedModel
from proa.telemetry import Kind, SpanRecord, TraceContext, Tracing, child_of, parse
from proa.telemetry.spans import Value

log = logging.getLogger("proa.request")

METHOD = "inference.GRPCInferenceService/ModelInfer"
NONE, NOTABLE, ALL = REQUEST_LOGS = ("none", "notable", "all")
# What the client did wrong itself is told by chance only: it could fill any log.
CLIENTS_OWN = frozenset({"INVALID_ARGUMENT", "NOT_FOUND", "PERMISSION_DENIED", "UNAUTHENTICATED"})
# An overload makes thousands of failures a second: telling them all would make it worse.
NOTABLE_PER_S_MAX, NOTABLE_BURST = 100.0, 1000.0


def open_stories(tracing: Tracing | None, request_log: str, untold: Counter) -> Storyteller | None:
    """None where nothing is to be told of any request: then nothing is noted either."""
    if tracing is None and request_log == NONE:
        return None
    return Storyteller(tracing, request_log, untold)


class Storyteller:
    """`tracing`: where spans go, None for nowhere. `request_log`: which requests get a line.
    `untold`: counts notable requests beyond what is told of them per second."""

    def __init__(
        self,
        tracing: Tracing | None,
        request_log: str,
        untold: Counter,
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        assert request_log in REQUEST_LOGS
        self._tracing = tracing
        self._log = request_log
        self._untold = untold
        self._now = now
        self._room = Bucket(NOTABLE_BURST, now())

    def begin(self, metadata: Iterable[tuple[str, str | bytes]]) -> Story:
        """A request has arrived with this metadata."""
        if self._tracing is None:
            return Story(self, None, None)
        parent = parse(metadata)
        context = self._tracing.begin(parent)
        return Story(self, context, None if parent is None else parent.span_id)

    def slow_s(self, spec: CodedModel) -> float:
        """An answer that takes longer than this is notable."""
        slow_ms = self._tracing.slow_ms if self._tracing is not None else 0.0
        return (slow_ms or spec.slo.latency_ms) / 1000.0

    def judge(self, story: Story, *, slow: bool) -> dict[str, str] | None:
        """A story that has its answer: the exemplar of its latency if it will be told."""
        notable = []
        if story.source == Source.RECONSTRUCTED.value:
            notable.append("reconstructed")
        if story.source == Source.HEDGE.value:
            notable.append("hedge")
        if slow:
            notable.append("slow")
        self._keep(story, *notable)
        if story.context is None or not (story.kept or story.sampled):
            return None
        return {"trace_id": story.context.trace_hex}

    # --- called by stories

    def tell(self, story: Story) -> None:
        """See `stories.Teller`."""
        status = story.status
        if status != "OK" and status not in CLIENTS_OWN:
            self._keep(story, "failed")
        if self._log == ALL or (self._log == NOTABLE and story.kept):
            self._write(story)
        if story.context is not None and (story.kept or story.sampled or story.beside):
            self._tell(story)

    def tell_late(self, story: Story, part: Try | Decoding) -> None:
        """See `stories.Teller`."""
        assert self._tracing is not None
        assert story.context is not None
        if isinstance(part, Try):
            self._tracing.emit(_attempt(story, story.context, part))
        else:
            self._tracing.emit(*_decoding(story.context, part))

    def tell_row(self, row: Row) -> None:
        """See `stories.Teller`."""
        assert self._tracing is not None
        self._tracing.emit(_parity(row), *_calls(row, row.context))

    def tell_beside(self, story: Story) -> None:
        """See `stories.Teller`."""
        story.beside = True
        if story.end_ns and not story.told:
            self._tell(story)

    # --- telling

    def _keep(self, story: Story, *notable: str) -> None:
        if not notable:
            return
        if self._room.take(NOTABLE_BURST, NOTABLE_PER_S_MAX, self._now()) > 0.0:
            self._untold.inc()
        else:
            story.kept = (*story.kept, *notable)

    def _tell(self, story: Story) -> None:
        assert self._tracing is not None
        assert story.context is not None
        story.told = True
        records = [_request(story, story.context)]
        records += [_attempt(story, story.context, one) for one in story.tries if one.end_ns]
        for decoding in story.decodings:
            if decoding.end_ns:
                records += _decoding(story.context, decoding)
        self._tracing.emit(*records)
        for row in story.rows:
            row.want()
            if "reconstructed" in story.kept:  # from their answers
                for member in row.members:
                    self.tell_beside(member)

    def _write(self, story: Story) -> None:
        fields = {
            "model": story.model,
            "source": story.source,
            "worker": story.worker,
            "group": story.group,
            "status": story.status,
            "ms": round((story.end_ns - story.start_ns) / 1e6, 3),
            "kind": ",".join(story.kept) or "usual",
            "hedges": story.count(Source.HEDGE.value),
            "retries": story.count(Source.RETRY.value),
            "tenant": story.tenant,
        }
        extra: dict[str, object] = {
            "fields": {key: value for key, value in fields.items() if value not in (None, "")}
        }
        if story.context is not None:
            extra["trace_id"] = story.context.trace_hex
            extra["span_id"] = story.context.span_hex
        log.info("request", extra=extra)


def _request(story: Story, context: TraceContext) -> SpanRecord:
    attributes = _rpc(METHOD, story.status)
    attributes["proa.model"] = story.model
    reasons = (*(("sampled",) if story.sampled else ()), *story.kept)
    attributes["proa.kept"] = ",".join(reasons) or "member"
    if story.query:
        attributes["proa.query"] = story.query
        attributes["proa.exact"] = story.exact
    if story.served is not None:
        attributes["proa.policy"] = story.policy or in_force(story.served)
    if story.source:
        attributes["proa.source"] = story.source
    if story.worker is not None:
        attributes["proa.worker"] = story.worker
    if story.group is not None:
        attributes["proa.group"] = story.group
    if story.position >= 0:
        attributes["proa.position"] = story.position
    failed = story.status != "OK" and story.status not in CLIENTS_OWN
    return SpanRecord(
        METHOD,
        context,
        story.parent,
        Kind.SERVER,
        story.start_ns,
        story.end_ns,
        attributes,
        error=(story.reason or story.status) if failed else None,
    )


def _attempt(story: Story, request: TraceContext, one: Try) -> SpanRecord:
    attributes = _rpc(METHOD, one.failure[0] if one.failure else "OK", one.worker.address)
    attributes["proa.attempt"] = story.tries.index(one) + 1
    attributes["proa.kind"] = one.kind
    attributes["proa.worker"] = one.worker.name
    attributes["proa.won"] = one.number == story.won
    return _record(METHOD, one.context or child_of(request), request.span_id, one, attributes)


def _decoding(request: TraceContext, one: Decoding) -> list[SpanRecord]:
    """For the request that it was done for with its calls, for others of its group by itself."""
    attributes: dict[str, Value] = {
        "proa.group": one.group,
        "proa.missing": one.missing,
        "proa.placement": "pod" if one.calls else "inline",
    }
    own = one.parent == request.span_id
    context = one.context if own else child_of(request)
    record = _record("proa.decode", context, request.span_id, one, attributes, Kind.INTERNAL)
    record.links = one.links
    return [record, *(_calls(one, context) if own else ())]


def _parity(row: Row) -> SpanRecord:
    attributes: dict[str, Value] = {
        "proa.group": row.group,
        "proa.k": len(row.links),
        "proa.r": row.r,
        "proa.row": row.row,
        "proa.worker": row.worker.name,
        "proa.fillers": row.fillers,
    }
    record = _record("proa.parity", row.context, None, row, attributes, Kind.INTERNAL)
    record.links = row.links
    record.events = ((row.start_ns, "sent", {}),)
    if row.failure is None:
        record.events += ((row.end_ns, "answered", {}),)
    record.start_ns = min(row.formed_ns, row.start_ns)
    return record


def _calls(step: Decoding | Row, parent: TraceContext) -> list[SpanRecord]:
    return [
        _record(
            one.method,
            one.context or child_of(parent),
            parent.span_id,
            one,
            _rpc(one.method, one.failure[0] if one.failure else "OK", one.address),
        )
        for one in step.calls
        if one.end_ns
    ]


def _record(
    name: str,
    context: TraceContext,
    parent: int | None,
    part: Part,
    attributes: dict[str, Value],
    kind: Kind = Kind.CLIENT,
) -> SpanRecord:
    """The span of `part`. One that was given up, because it was not needed any more, did not
    fail."""
    error = None
    if part.failure is not None:
        status, reason = part.failure
        attributes["error.type"] = status
        if status == CANCELLED:
            attributes["proa.cancelled"] = True
        else:
            error = reason
    return SpanRecord(
        name, context, parent, kind, part.start_ns, part.end_ns, attributes, error=error
    )


def _rpc(method: str, status: str, address: str = "") -> dict[str, Value]:
    """As OpenTelemetry's semantic conventions have it (v1.44, rpc)."""
    attributes: dict[str, Value] = {
        "rpc.system.name": "grpc",
        "rpc.method": method,
        "rpc.response.status_code": status,
    }
    if status != "OK":
        attributes["error.type"] = status
    if address:
        host, _, port = address.rpartition(":")
        attributes["server.address"] = host.strip("[]")
        attributes["server.port"] = int(port)
    return attributes
