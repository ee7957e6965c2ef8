"""Which requests are told without a collector: the request log, exemplars, and what is let go."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import time

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest

from fakes.cluster import cluster, request, worker_list, write_spec
from fakes.eventually import eventually
from fakes.triton_fake import FakeTriton, images
from proa.errors import BadAnswer
from proa.frontend.main import build_world
from proa.frontend.metrics import FrontendMetrics
from proa.frontend.queries import check_request
from proa.frontend.settings import FrontendSettings
from proa.frontend.stories import Row, Story, Try
from proa.frontend.tracing import Storyteller, open_stories
from proa.rpc import Channels
from proa.telemetry import SpanRecord, Tracing, new_context, to_metadata

EAGER = "groupMsMax: 1, idleReserve: 0, qualitySample: 0"
PARITY = f"policy: parity, patience: first, {EAGER}"
HEDGE = f"policy: hedge, hedge: {{delayMs: 1}}, {EAGER}"
NEVER_LATE_MS = 60_000.0


@pytest.mark.parametrize(
    ("mode", "statuses"), [("none", []), ("notable", ["INTERNAL"]), ("all", ["OK", "INTERNAL"])]
)
async def test_the_request_log_has_one_line_for_each_request_that_is_asked_for(
    tmp_path, caplog, mode, statuses
):
    caplog.set_level(logging.INFO, logger="proa.request")
    async with cluster(
        tmp_path, "policy: none", workers=1, request_log=mode, latency_ms=NEVER_LATE_MS
    ) as served:
        await served.infer(request())
        served.workers[0].fail_next(1, "INTERNAL")
        with pytest.raises(BadAnswer):
            await served.infer(request())
    lines = [one for one in caplog.records if one.name == "proa.request"]
    assert [line.fields["status"] for line in lines] == statuses
    assert {line.getMessage() for line in lines} <= {"request"}
    if mode == "all":
        usual, failed = (line.fields for line in lines)
        ms = usual.pop("ms")
        assert 0.0 < ms < NEVER_LATE_MS
        assert usual == {
            "model": "digits",
            "source": "worker",
            "worker": "w0",
            "status": "OK",
            "kind": "usual",
            "hedges": 0,
            "retries": 0,
        }
        assert failed["kind"] == "failed"


class Kept:
    """An exporter that keeps the spans. `records`: all so far."""

    def __init__(self):
        self.records: list[SpanRecord] = []

    def export(self, records):
        self.records += records

    def close(self):
        pass


@contextlib.asynccontextmanager
async def told(folder, redundancy, workers, *, tracing, request_log="none"):
    """A served model without its gRPC port, its teller, and the registry of its metrics."""
    registry = CollectorRegistry()
    metrics = FrontendMetrics(registry)
    teller = open_stories(tracing, request_log, metrics.untold)
    spec = write_spec(folder, redundancy, latency_ms=NEVER_LATE_MS)
    settings = FrontendSettings(
        specs=str(spec), workers=worker_list("digits", workers), canary_s=600.0
    )
    channels = Channels(message_bytes_max=1 << 20)
    world = build_world(settings, channels, metrics, teller=teller)
    model = world.models.get("digits")
    try:
        await eventually(lambda: len(list(model.shell.engine.state.workers)) == len(workers))
        yield model, teller, registry
    finally:
        await world.models.close()
        await channels.close()


async def infer(model, teller, image, metadata=()):
    """A request, noted and ended as the servicer would."""
    story = teller.begin(metadata) if teller is not None else None
    query = check_request(request(image), model.spec)
    result = await model.infer(query, time.monotonic() + 30.0, story)
    if story is not None:
        story.end("OK", "")
    return result


async def test_the_latency_of_a_told_request_leads_to_its_trace(tmp_path):
    tracing = Tracing(Kept(), sample=0.0)
    async with (
        FakeTriton() as worker,
        told(tmp_path, "policy: none", [worker], tracing=tracing) as (model, teller, registry),
    ):
        first, second = images(2)
        await infer(model, teller, first)
        assert b"trace_id" not in generate_latest(registry)
        parent = new_context(sampled=True)
        await infer(model, teller, second, to_metadata(parent))
        (line,) = (one for one in generate_latest(registry).splitlines() if b"trace_id" in one)
        assert line.startswith(b"proa_frontend_request_seconds_bucket{")
        assert f'# {{trace_id="{parent.trace_hex}"}}'.encode() in line
    tracing.close()


async def test_without_traces_and_log_nothing_is_noted(tmp_path):
    async with (
        FakeTriton() as worker,
        told(tmp_path, HEDGE, [worker], tracing=None) as (model, teller, registry),
    ):
        assert teller is None
        await infer(model, teller, images(1)[0])
        (entry,) = model.shell._open.values() or [None]
        assert entry is None or entry.story is None
        assert b"grpc_client_call_hedges_count" in generate_latest(registry)


def is_quiet(model):
    """Whether nothing is under way any more."""
    shell, engine = model.shell, model.shell.engine
    return not (engine.state.attempts or engine.coding.groups or shell._attempts or shell._tasks)


async def test_stories_leave_no_garbage_behind(tmp_path):
    """Whatever holds whatever, it lets go: nothing is left for the collector of cycles to find."""
    exporter = Kept()
    tracing = Tracing(exporter, sample=0.5)
    async with contextlib.AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(FakeTriton()) for _ in range(4)]
        model, teller, _ = await stack.enter_async_context(
            told(tmp_path, f"{PARITY}, k: 2", workers, tracing=tracing)
        )
        gc.collect()
        gc.disable()
        try:
            for _ in range(20):
                await asyncio.gather(*(infer(model, teller, image) for image in images(3)))
            await eventually(lambda: is_quiet(model))
            left = [one for one in gc.get_objects() if type(one) in (Story, Row, Try)]
            # Answered queries are kept as fillers, and their stories with them.
            held = set(map(id, filter(None, (e.story for e in model.shell._open.values()))))
            stories = [one for one in left if isinstance(one, Story)]
            assert {id(one) for one in stories} <= held
            assert len(left) <= 4 * len(held)
        finally:
            gc.enable()
    tracing.close()
    parities = [one for one in exporter.records if one.name == "proa.parity"]
    assert parities
    assert len({one.context.span_id for one in parities}) == len(parities)


async def test_too_many_notable_requests_are_counted_instead(tmp_path):
    registry = CollectorRegistry()
    metrics = FrontendMetrics(registry)
    exporter = Kept()
    tracing = Tracing(exporter, sample=0.0)
    teller = Storyteller(tracing, "none", metrics.untold, now=lambda: 5.0)
    for _ in range(1003):
        teller.begin(()).end("RESOURCE_EXHAUSTED", "overloaded")
    assert registry.get_sample_value("proa_frontend_untold_total") == 3
    tracing.close()
    assert len(exporter.records) == 1000
