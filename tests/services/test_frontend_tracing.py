"""The story of a request: which are told, as spans and log lines, and what workers hear of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import pytest

from fakes.cluster import (
    Coder,
    cluster,
    one_of_two_missing,
    request,
    until,
)
from fakes.collector import Collector, dead_endpoint
from fakes.eventually import eventually
from fakes.triton_fake import FakeTriton
from proa.errors import BadAnswer, InvalidRequest
from proa.frontend.tracing import METHOD
from proa.telemetry import TraceContext, new_context, parse, to_metadata

EAGER = "groupMsMax: 1, idleReserve: 0, qualitySample: 0"
PARITY = f"policy: parity, patience: first, {EAGER}"
# Late enough for two requests to be at a worker each before the first is hedged.
HEDGE = f"policy: hedge, hedge: {{delayMs: 200, budgetPercent: 100}}, {EAGER}"
NEVER_LATE_MS = 60_000.0
# A request that is slow on a busy machine would be told, too.
CALM = {"latency_ms": NEVER_LATE_MS, "canary_s": 600.0}


@pytest.fixture
def collector(monkeypatch):
    """Gets the spans of every frontend and coder that a test starts."""
    with Collector() as found:
        trace(monkeypatch, found)
        yield found


def trace(monkeypatch, collector, sample=0.0):
    for name, value in collector.environ(sample=sample).items():
        monkeypatch.setenv(name, value)


class Listening(FakeTriton):
    """Notes the trace context of every call; None: it had none."""

    def __init__(self, **options):
        super().__init__(**options)
        self.contexts = []

    async def ModelInfer(self, request, context):
        self.contexts.append(parse(context.invocation_metadata()))
        return await super().ModelInfer(request, context)


def requests_of(spans):
    return [span for span in spans if span.name == METHOD and span.kind == "SERVER"]


def attempts_of(spans, parent):
    found = [span for span in spans if span.name == METHOD and span.kind == "CLIENT"]
    return [span for span in found if span.parent_id == parent.span_id]


def kept(spans, why):
    return [span for span in requests_of(spans) if why in span.attributes["proa.kept"]]


def ids(spans):
    return [(span.trace_id, span.span_id) for span in spans]


async def test_a_reconstructed_request_tells_the_whole_story(tmp_path, collector):
    fakes = [Listening() for _ in range(3)]
    async with cluster(tmp_path, PARITY, fakes=fakes, **CALM) as served:
        first, stuck = await one_of_two_missing(served)
        assert (await first).parameters["proa.source"].string_param == "reconstructed"
        stuck.resume()
        await collector.wait(lambda spans: len(spans) == 6)
    assert {context for worker in fakes for context in worker.contexts} == {None}
    spans = collector.spans
    (told,), (member,) = kept(spans, "reconstructed"), kept(spans, "member")
    assert (
        told.attributes.items()
        >= {
            "rpc.response.status_code": "OK",
            "proa.model": "digits",
            "proa.source": "reconstructed",
            "proa.group": 1,
            "proa.policy": "parity+retry",
            "proa.exact": False,
        }.items()
    )
    assert {told.attributes["proa.position"], member.attributes["proa.position"]} == {0, 1}
    assert told.parent_id == member.parent_id == ""

    (late,), (won,) = attempts_of(spans, told), attempts_of(spans, member)
    assert (late.attributes["proa.won"], won.attributes["proa.won"]) == (False, True)
    assert late.end_ns >= told.end_ns > late.start_ns
    assert late.attributes["server.port"] == stuck.port
    assert (late.status, won.attributes["proa.kind"]) == ("UNSET", "worker")

    (parity,), (decode,) = collector.named("proa.parity"), collector.named("proa.decode")
    assert parity.parent_id == ""
    assert parity.trace_id not in {told.trace_id, member.trace_id}
    assert sorted(ids(parity.links)) == sorted(ids([told, member]))
    assert [event.name for event in parity.events] == ["sent", "answered"]
    assert (parity.attributes["proa.k"], parity.attributes["proa.fillers"]) == (2, 0)
    assert decode.parent_id == told.span_id
    assert ids(decode.links) == ids([parity])
    assert decode.attributes["proa.placement"] == "inline"
    assert {span.service for span in spans} == {"proa-frontend"}


async def test_a_sampled_request_is_followed_to_the_worker_of_its_parity(
    tmp_path, collector, monkeypatch
):
    trace(monkeypatch, collector, sample=1.0)
    fakes = [Listening() for _ in range(3)]
    async with cluster(tmp_path, PARITY, fakes=fakes, **CALM) as served:
        first, stuck = await one_of_two_missing(served)
        assert (await first).parameters["proa.source"].string_param == "reconstructed"
        stuck.resume()
        await collector.wait(lambda spans: len(spans) == 6)
    told = requests_of(collector.spans)
    assert {one.attributes["proa.kept"] for one in told} == {"sampled", "sampled,reconstructed"}
    attempts = [attempt for one in told for attempt in attempts_of(collector.spans, one)]
    wanted = ids([*attempts, *collector.named("proa.parity")])
    heard = [one for worker in fakes for one in worker.contexts if one is not None]
    assert sorted((one.trace_hex, one.span_hex) for one in heard) == sorted(wanted)


async def test_calls_to_encoder_and_decoder_are_children_that_they_hear_of(
    tmp_path, collector, monkeypatch
):
    trace(monkeypatch, collector, sample=1.0)
    async with contextlib.AsyncExitStack() as stack:
        encoder, decoder = Coder("encoder"), Coder("decoder")
        for coder in (encoder, decoder):
            await stack.enter_async_context(coder)
        settings = {"encoders": encoder.address, "decoders": decoder.address, **CALM}
        text = f"placement: pod, {PARITY}"
        served = await stack.enter_async_context(cluster(tmp_path, text, workers=3, **settings))
        first, stuck = await one_of_two_missing(served)
        assert (await first).parameters["proa.source"].string_param == "reconstructed"
        stuck.resume()
        for name, parent, address in (
            ("proa.api.v1.Encoder/InferParity", "proa.parity", encoder.address),
            ("proa.api.v1.Decoder/Decode", "proa.decode", decoder.address),
        ):
            ((call, above),) = await collector.wait(
                lambda _, n=name, p=parent: pairs(collector, n, p)
            )
            assert call.kind == "CLIENT"
            assert call.attributes["server.port"] == int(address.rpartition(":")[2])
            assert above.start_ns <= call.start_ns <= call.end_ns <= above.end_ns
        assert collector.named("proa.decode")[0].attributes["proa.placement"] == "pod"


def pairs(collector, name, parent):
    """Client spans of that name, each with its parent."""
    return [
        (span, above)
        for span in collector.named(name)
        for above in collector.named(parent)
        if span.kind == "CLIENT" and span.parent_id == above.span_id
    ]


async def test_a_failure_is_told_whatever_the_sample_and_a_usual_answer_is_not(
    tmp_path, collector, caplog
):
    caplog.set_level(logging.INFO, logger="proa.request")
    async with cluster(tmp_path, "policy: none", workers=1, **CALM) as served:
        await served.infer(request())
        with pytest.raises(InvalidRequest):
            await served.infer(request(proa_policy="magic"))
        served.workers[0].fail_next(1, "INTERNAL")
        with pytest.raises(BadAnswer):
            await served.infer(request())
        # One queue and one order: what was told before it would have come before it.
        await collector.wait(lambda spans: len(spans) == 2)
    (told,) = kept(collector.spans, "failed")
    assert (told.status, told.attributes["rpc.response.status_code"]) == ("ERROR", "INTERNAL")
    (attempt,) = attempts_of(collector.spans, told)
    assert (attempt.status, attempt.attributes["error.type"]) == ("ERROR", "INTERNAL")
    assert "told to fail" in attempt.message
    assert len(collector.spans) == 2
    (line,) = lines_of(caplog)
    assert (line.trace_id, line.span_id) == (told.trace_id, told.span_id)


def lines_of(caplog):
    return [one for one in caplog.records if one.name == "proa.request"]


async def test_a_request_that_its_client_gave_up_is_told(tmp_path, collector):
    async with cluster(tmp_path, "policy: none", workers=1, **CALM) as served:
        served.workers[0].pause()
        call = served.stub.ModelInfer(request(timeout=30_000_000))
        await eventually(lambda: served.workers[0].calls["deployed"] == 2)
        call.cancel()
        (told,) = await collector.wait(lambda spans: kept(spans, "failed"))
        assert told.attributes["rpc.response.status_code"] == "CANCELLED"
        served.workers[0].resume()
        # What it computed by then is told when it is over.
        (attempt,) = await collector.wait(lambda spans: attempts_of(spans, told))
        assert attempt.end_ns > told.end_ns


async def test_slow_is_what_the_settings_say_it_is(tmp_path, collector, monkeypatch):
    monkeypatch.setenv("PROA_TRACE_SLOW_MS", "0.001")
    async with cluster(tmp_path, "policy: none", workers=1, **CALM) as served:
        await served.infer(request())
        (told,) = await collector.wait(requests_of)
        assert told.attributes["proa.kept"] == "slow"


async def test_a_caller_decides_whether_its_request_is_sampled(tmp_path, collector):
    worker = Listening()
    async with cluster(tmp_path, "policy: none", fakes=[worker], **CALM) as served:
        for sampled in (False, True):
            parent = new_context(sampled)
            metadata = to_metadata(TraceContext(parent.trace_id, parent.span_id, sampled, "a=1"))
            await served.stub.ModelInfer(request(), metadata=metadata)
        (told,) = await collector.wait(requests_of)
    assert (told.trace_id, told.parent_id) == (parent.trace_hex, parent.span_hex)
    (attempt,) = attempts_of(collector.spans, told)
    assert told.state == attempt.state == "a=1"
    unsampled, heard = worker.contexts[-2:]
    assert unsampled is None
    assert (heard.trace_hex, heard.span_hex) == (attempt.trace_id, attempt.span_id)
    assert (heard.sampled, heard.state) == (True, "a=1")


async def test_each_request_of_a_stream_is_a_span_of_its_own(tmp_path, collector):
    parent = new_context(sampled=True)
    async with cluster(tmp_path, "policy: none", workers=2, **CALM) as served:
        call = served.stub.ModelStreamInfer(
            iter([request(), request()]), metadata=to_metadata(parent)
        )
        assert len([answer async for answer in call]) == 2
        told = await collector.wait(lambda spans: len(found := requests_of(spans)) == 2 and found)
    assert {(span.trace_id, span.parent_id) for span in told} == {
        (parent.trace_hex, parent.span_hex)
    }
    assert len({span.span_id for span in told}) == 2


async def test_a_hedge_that_won_is_told_and_counted(tmp_path, collector):
    async with cluster(tmp_path, HEDGE, workers=2, **CALM) as served:
        slow, fast = served.workers
        for worker in served.workers:
            worker.pause()
        both = asyncio.gather(*(served.infer(request(timeout=30_000_000)) for _ in range(2)))
        await eventually(lambda: slow.busy and fast.busy)
        fast.resume()
        found = await both
        assert {one.parameters["proa.source"].string_param for one in found} == {"worker", "hedge"}
        slow.resume()
        (told,) = await collector.wait(lambda spans: kept(spans, "hedge"))
        first, hedge = await collector.wait(
            lambda spans: len(found := attempts_of(spans, told)) == 2 and by_start(found)
        )
        assert [one.attributes["proa.kind"] for one in (first, hedge)] == ["worker", "hedge"]
        assert [one.attributes["proa.won"] for one in (first, hedge)] == [False, True]
        assert [one.attributes["proa.attempt"] for one in (first, hedge)] == [1, 2]
        assert await served.metric("grpc_client_call_hedges_sum", grpc_target="digits") >= 1
        assert await served.metric("grpc_client_call_hedges_count", grpc_method=METHOD) == 2


def by_start(spans):
    return sorted(spans, key=lambda span: span.start_ns)


async def test_a_dead_collector_changes_nothing_for_clients(tmp_path, monkeypatch):
    with dead_endpoint() as endpoint:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        monkeypatch.setenv("PROA_TRACE_SAMPLE", "1")
        async with cluster(tmp_path, PARITY, workers=3, **CALM) as served:
            first, stuck = await one_of_two_missing(served)
            assert (await first).parameters["proa.source"].string_param == "reconstructed"
            stuck.resume()
            for _ in range(20):
                assert (await served.infer(request())).outputs
            await until(lambda: served.metric("proa_trace_spans_total", outcome="dropped"))
