"""The runner over a fake place and a fake server on loopback: phases, verdicts, roll-back."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from fakes.eventually import eventually
from fakes.oip_fake import FakeServer, serving
from proa.errors import EnvironmentLacks, InvalidRequest, Unavailable
from proa.rpc import servicer_errors
from proa_chaos.blast import Pool
from proa_chaos.experiment import Choice, Experiment, Fault, Guard, Probe, Selector, Workload
from proa_chaos.journal import journal
from proa_chaos.report import page, write_report
from proa_chaos.result import Verdict
from proa_chaos.selection import ROLE, Target
from proa_chaos.serving import serving_runner

WORKERS = [Target(f"worker-{i}", f"worker-{i}", labels={ROLE: "worker"}) for i in range(4)]
NO_FAILURE = Probe("failed", "all", at_most=0.0)
NOTHING_WRONG = Probe("wrong", "all", at_most=0.0)


class BreakableServer(FakeServer):
    """Answers wrong, or with errors, while told so."""

    def __init__(self):
        super().__init__()
        self.fault = ""

    @servicer_errors
    async def ModelInfer(self, request, context):
        if self.fault == "error":
            raise Unavailable("broken on purpose")
        if self.fault == "drop":
            await asyncio.Event().wait()
        self.requests.append(request)
        answer = await self.answer(request)
        if self.fault == "bitflip":
            flipped = np.frombuffer(answer.raw_output_contents[0], np.float32) + 1
            answer.raw_output_contents[0] = flipped.tobytes()
        return service_pb2.ModelInferResponse.FromString(answer.SerializeToString())


class FakePlace:
    """A backend whose faults act on the server; it notes what it was asked."""

    name = "fake"

    def __init__(self, server):
        self.server = server
        self.address = server.address
        self.waiting = []
        self.quarantine = []
        self.calls = []
        self.announced = []
        self.lacks = None
        self.end_error = None
        self.inject_hangs = False

    async def targets(self, model):
        return WORKERS

    async def pools(self, model):
        return [Pool("the workers", tuple(WORKERS), frozenset(w.name for w in WORKERS), 1, 3)]

    async def waiting_for(self, model):
        return self.waiting

    async def quarantined(self, model):
        return self.quarantine

    async def prepare(self, hits):
        self.calls.append(("prepare", len(hits)))
        if self.lacks:
            raise self.lacks

    async def inject(self, hit, ttl_s):
        self.calls.append(("inject", hit.id, round(ttl_s, 3)))
        self.server.fault = hit.fault.action
        if self.inject_hangs:
            await asyncio.Event().wait()

    async def end(self, hit):
        self.calls.append(("end", hit.id))
        self.server.fault = ""
        if self.end_error:
            raise self.end_error

    async def announce(self, hit, ttl_s):
        self.announced.append((hit.id, round(ttl_s, 3)))

    async def close(self):
        """Nothing is open."""


@pytest.fixture
async def place():
    async with serving(BreakableServer()) as server:
        yield FakePlace(server)


def trial(*probes, action="error", mode="one", guards=(), **workload):
    lengths = {"before_s": 0.2, "during_s": 0.4, "after_s": 0.2, "recovery_s": 0.3} | workload
    return Experiment(
        "trial", "A trial", "It teaches <nothing>.", probes or (NO_FAILURE,),
        (Fault("f", action, Choice(Selector(), mode, 3 * (mode == "fixed"))),),
        workload=Workload(rate_hz=100, queries=4, deadline_ms=500.0, **lengths),
        guards=guards,
    )  # fmt: skip


async def run(place, experiment, **options):
    return await serving_runner(experiment, place, "double", **options).run()


async def test_a_hypothesis_that_holds_passes(place, tmp_path):
    result = await run(place, trial(NOTHING_WRONG, Probe("failed", "after", at_most=0.0)))
    assert (result.verdict, result.fail_step) == (Verdict.PASS, "")
    assert result.success_percentage == 100.0
    assert place.calls == [("prepare", 1), ("inject", "0.0", 0.4), ("end", "0.0")]
    assert list(result.phases) == ["before", "during", "after"]
    assert {s.status for s in result.seen.of("during")} >= {"UNAVAILABLE"}
    assert not [s for s in result.seen.samples if s.phase != "during" and not s.ok]


async def test_watchers_are_told_of_each_fault_and_of_its_end(place):
    await run(place, trial(NOTHING_WRONG))
    assert place.announced == [("0.0", 1.0), ("0.0", 0.0)]  # for a second, or who would see it?
    place.announced.clear()
    once = trial(NOTHING_WRONG)
    fault = replace(once.faults[0], action="kill", duration_s=0.0)
    await run(place, replace(once, faults=(fault,)))
    assert place.announced == [("0.0", 1.0)]


async def test_a_hypothesis_that_is_false_fails_and_names_the_step(place):
    result = await run(place, trial(NOTHING_WRONG, NO_FAILURE))
    assert result.verdict is Verdict.FAIL
    assert result.fail_step.startswith("all failed at most 0; found ")
    assert result.success_percentage == 50.0
    assert result.before is not None
    assert result.before.met


async def test_wrong_answers_are_seen(place):
    result = await run(place, trial(NO_FAILURE, NOTHING_WRONG, action="bitflip"))
    assert result.fail_step.startswith("all wrong at most 0; found ")
    wrong = [s for s in result.seen.samples if s.wrong]
    assert {s.phase for s in wrong} == {"during"}
    assert len(wrong) > 20


async def test_nothing_is_broken_when_the_steady_state_is_missing(place):
    place.waiting = ["worker-2 is starting"]
    result = await run(place, trial(), ready_s_max=0.0)
    assert result.verdict is Verdict.FAIL
    assert result.fail_step == "steady state before: worker-2 is starting"
    assert "steady state before" in page(result)
    assert journal(result)["status"] == "failed"
    assert not [call for call in place.calls if call[0] == "inject"]


async def test_nothing_is_broken_when_the_phase_before_misses_its_probes(place):
    result = await run(place, trial(Probe("sent", "before", at_least=1e6)))
    assert result.verdict is Verdict.FAIL
    assert result.fail_step.startswith("steady state before: before sent at least 1e+06; found")
    assert not [call for call in place.calls if call[0] == "inject"]


async def test_what_does_not_recover_fails(place):
    def spoil(event):
        if event.kind == "fault":
            place.waiting = ["worker-0 is starting"]

    result = await run(place, trial(NOTHING_WRONG), tell=spoil)
    assert result.verdict is Verdict.FAIL
    assert result.fail_step == "steady state after: worker-0 is starting"
    assert result.after is not None
    assert not result.after.met


async def test_who_is_in_quarantine_afterwards_is_not_missing(place):
    def spoil(event):
        if event.kind == "fault":
            place.waiting = place.quarantine = ["worker-0 is quarantined: 2 faults in 60 min"]

    during = Probe("quarantined", "during", at_least=1.0, at_most=1.0)
    before = Probe("quarantined", "before", at_most=0.0)
    result = await run(place, trial(NOTHING_WRONG, before, during), tell=spoil)
    assert result.verdict is Verdict.PASS, result.fail_step
    assert result.seen.quarantined == {"before": 0, "during": 1, "after": 1}
    assert result.seen.measure("quarantined", "all") == 1
    again = await run(place, trial(NOTHING_WRONG), ready_s_max=0.1)
    assert again.verdict is Verdict.FAIL
    assert again.fail_step == f"steady state before: {place.waiting[0]}"
    assert again.seen.quarantined == {}, "nobody asked"


async def test_a_breached_guard_stops_it_and_rolls_back(place):
    guard = Guard(Probe("failedPercent", at_most=50.0), window_s=0.5, samples_min=5)
    result = await run(place, trial(NOTHING_WRONG, guards=(guard,), during_s=30.0))
    assert result.verdict is Verdict.STOPPED
    assert result.fail_step.startswith("guard: during failedPercent at most 50; found ")
    assert place.calls[-1] == ("end", "0.0")
    assert result.duration_s < 10


async def test_told_to_stop_it_rolls_back_first(place):
    task = asyncio.create_task(run(place, trial(during_s=30.0)))
    await eventually(lambda: ("inject", "0.0", 30.0) in place.calls)
    task.cancel()
    result = await task
    assert (result.verdict, result.fail_step) == (Verdict.STOPPED, "told to stop")
    assert place.calls[-1] == ("end", "0.0")


async def test_what_takes_too_long_is_stopped_and_rolled_back(place):
    place.inject_hangs = True
    result = await run(place, trial(), slack_s=0.0)
    assert (result.verdict, result.fail_step) == (Verdict.STOPPED, "not over within 1.1 s")
    assert place.calls[-2:] == [("inject", "0.0", 0.4), ("end", "0.0")]


async def test_a_fault_that_cannot_be_ended_is_reported(place):
    place.end_error = Unavailable("gone")
    result = await run(place, trial(NOTHING_WRONG))
    assert result.verdict is Verdict.PASS  # it ends by itself
    (rollback,) = journal(result)["rollbacks"]
    assert (rollback["status"], rollback["output"]) == ("failed", "gone")


async def test_what_the_place_lacks_is_an_error_before_anything_is_done(place):
    place.lacks = EnvironmentLacks("start it with fault injection")
    with pytest.raises(EnvironmentLacks):
        await run(place, trial())
    assert place.calls == [("prepare", 1)]


async def test_more_than_the_code_bears_needs_force(place):
    with pytest.raises(InvalidRequest, match="3 failure domains of the workers"):
        await run(place, trial(mode="fixed"))
    assert place.calls == []
    result = await run(place, trial(NOTHING_WRONG, mode="fixed"), force=True)
    assert len(result.done) == 3


async def test_inputs_and_labels_come_from_a_file(place, tmp_path):
    x = np.random.default_rng(1).random((6, 2), dtype=np.float32)
    path = tmp_path / "q.npz"
    np.savez(path, anything=x, labels=x.argmin(1))  # an array is known by its shape
    experiment = trial(NOTHING_WRONG)
    asked = replace(experiment, workload=replace(experiment.workload, inputs=path, queries=100))
    result = await run(place, asked)
    sent = {bytes(request.raw_input_contents[0]) for request in place.server.requests}
    assert sent == {row.tobytes() for row in x}
    assert result.seen.measure("accuracy", "before") == 0.0


@pytest.mark.parametrize(
    "arrays",
    [
        {"z": np.zeros((3, 3), np.float32)},  # no input
        {"x": np.zeros((3, 2), np.float64)},
        {"x": np.zeros((0, 2), np.float32)},
        {"x": np.zeros((3, 2), np.float32), "labels": np.zeros(2)},
    ],
    ids=["shape", "dtype", "empty", "lengths"],
)
async def test_a_file_of_queries_must_fit_the_model(place, tmp_path, arrays):
    path = tmp_path / "q.npz"
    np.savez(path, **arrays)
    experiment = trial()
    asked = replace(experiment, workload=replace(experiment.workload, inputs=path))
    with pytest.raises(InvalidRequest, match=r"q\.npz: needs arrays of one length for the inputs"):
        await run(place, asked)
    assert not place.server.requests


async def test_journal_and_report(place, tmp_path):
    result = await run(place, trial(NOTHING_WRONG, NO_FAILURE))
    paths = write_report(result, tmp_path / "out")
    assert [path.name for path in paths] == ["journal.json", "report.html"]
    found = journal(result)
    toolkit = {
        "chaoslib-version", "deviated", "duration", "end", "experiment", "node", "platform",
        "rollbacks", "run", "start", "status", "steady_states",
    }  # fmt: skip
    assert toolkit <= found.keys()
    assert (found["status"], found["deviated"]) == ("deviated", True)
    assert found["steady_states"]["before"]["steady_state_met"]
    assert not found["steady_states"]["after"]["steady_state_met"]
    status = found["chaosresult"]["experimentStatus"]
    assert (status["phase"], status["verdict"]) == ("Completed", "Fail")
    assert status["probeSuccessPercentage"] == "50"
    assert status["failStep"] == result.fail_step
    assert [t["chaosStatus"] for t in found["chaosresult"]["history"]["targets"]] == ["reverted"]
    assert found["proa"]["measures"]["during"]["failed"] > 0
    text = paths[1].read_text()
    assert "It teaches &lt;nothing&gt;." in text
    assert text.count('<circle class="failed"') == found["proa"]["measures"]["all"]["failed"]
    assert "<script" not in text
    picture = ET.fromstring(text[text.index("<svg") : text.index("</svg>") + 6])
    assert len(picture.findall("circle")) == len(result.seen.samples)
    assert [bar.get("class") for bar in picture.findall("rect")].count("bar") == 1
    assert "http" not in text
