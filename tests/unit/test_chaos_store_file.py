"""Experiments on a store: what their files may say, whom they hit, and the guard."""

from __future__ import annotations

import pytest

from proa.api.v1 import faults_pb2
from proa.errors import InvalidRequest, NotSupported, SpecError, Unavailable
from proa_chaos import inband
from proa_chaos.blast import check_blast, shard_pool
from proa_chaos.experiment import Choice, Experiment, Fault, Parameters, Selector, StoreLoad
from proa_chaos.file import load_experiment
from proa_chaos.options import Options, adapted
from proa_chaos.plan import Hit, plan
from proa_chaos.selection import COORDINATOR_ROLE, ROLE, SHARD_ROLE, Target

GOOD = """\
apiVersion: proa.dev/v1alpha1
kind: ChaosExperiment
metadata: {name: trial}
spec:
  title: a line
  description: what it teaches
  workload:
    store: {rows: 1000, dim: 8, batch: 32, workers: 4, rateHz: 10}
    phases: {before: 1s, during: 9s, after: 1s}
  faults:
    - {name: one, action: kill-shard, selector: {}, parameters: {what: server}}
    - {name: two, action: stale-disk, selector: {}, at: 1s, duration: 3s}
    - {name: three, action: bitflip, selector: {}, parameters: {target: embedding, bits: 7}}
  hypothesis:
    - {measure: stallMs, atMost: 3000}
  guards:
    - {measure: failed, atMost: 20}
"""


def load(tmp_path, text=GOOD):
    path = tmp_path / "trial.yaml"
    path.write_text(text, encoding="utf-8")
    return load_experiment(path)


def test_a_file_says_what_it_says(tmp_path):
    found = load(tmp_path)
    assert found.workload.store == StoreLoad(1000, 8, 32, 4, 10.0)
    assert found.workload.deadline_ms == 30_000.0
    kill, old, flip = found.faults
    assert (kill.duration_s, kill.parameters.what) == (0.0, "server")
    assert (old.at_s, old.duration_s) == (1.0, 3.0)
    assert (flip.duration_s, flip.parameters.bits) == (None, 7)
    assert all(fault.on_shards for fault in found.faults)
    assert load(tmp_path, GOOD.replace(", parameters: {what: server}", "")).faults[
        0
    ].parameters.what == ("both")


def test_the_load_has_defaults(tmp_path):
    text = GOOD.replace("{rows: 1000, dim: 8, batch: 32, workers: 4, rateHz: 10}", "{}")
    assert load(tmp_path, text).workload.store == StoreLoad()


OF_A_MODEL = "is of experiments on a model; this one is on a store"
STORE = "    store: {rows: 1000, dim: 8, batch: 32, workers: 4, rateHz: 10}\n"
BAD = [
    ("    store:", "    rateHz: 20\n    store:", 8, f"workload.rateHz: {OF_A_MODEL}"),
    ("    store:", "    exact: false\n    store:", 8, f"workload.exact: {OF_A_MODEL}"),
    ("  workload:", "  requires: {pool: shared}\n  workload:", 7, f"spec.requires: {OF_A_MODEL}"),
    ("workers: 4", "workers: 2000", 8, "workers: 2000 is out of range"),
    ("rows: 1000", "rows: 99", 8, "rows: 99 is out of range"),
    ("rateHz: 10}", "rateHz: 900}\n    recovery: 1h", 8, "makes 12999600 requests; the limit"),
    ("what: server", "what: disk", 11, "what: 'disk' is not one of both, agent, server"),
    ("target: embedding", "target: weight", 13, "has no such bitflip"),
    ("measure: stallMs", "measure: accuracy", 15, "does not measure 'accuracy'"),
    ("measure: failed", "measure: stallMs", 17, "'stallMs' is not known while the faults act"),
    ("measure: failed", "measure: quarantined", 17, "does not measure 'quarantined'"),
    (STORE, "", 14, "an experiment on a model does not measure 'stallMs'"),
]


@pytest.mark.parametrize(("old", "new", "line", "words"), BAD, ids=[words for *_, words in BAD])
def test_an_error_names_file_line_and_key(tmp_path, old, new, line, words):
    assert GOOD.count(old) == 1
    with pytest.raises(SpecError) as caught:
        load(tmp_path, GOOD.replace(old, new))
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path / 'trial.yaml'}:{line}: ")


def test_shards_are_of_experiments_on_a_store(tmp_path):
    text = GOOD.replace(STORE, "").replace("stallMs", "p99Ms")
    with pytest.raises(SpecError, match=r"faults\[0\]: .*on a model has no such kill-shard"):
        load(tmp_path, text)


@pytest.mark.parametrize(
    ("option", "flag"),
    [({"rate_hz": 3.0}, "--rate"), ({"model": "m"}, "--model"), ({"parallel": True}, "--parallel")],
)
def test_options_of_models_are_refused(tmp_path, option, flag):
    with pytest.raises(InvalidRequest, match=flag):
        adapted(load(tmp_path), Options(**option))


# --- who is hit

SHARDS = [
    Target(f"shard-{i}", f"node-{i // 2}", f"h:{i + 1}", labels={ROLE: SHARD_ROLE})
    for i in range(6)
]
AGENTS = [Target(f"agent-{i}", f"node-{i // 2}", labels={ROLE: "store-agent"}) for i in range(6)]
COORDINATOR = Target("coordinator", "c", labels={ROLE: COORDINATOR_ROLE})
TARGETS = [*SHARDS, *AGENTS, COORDINATOR]
NAMES = frozenset(target.name for target in SHARDS)


def trial(*faults):
    return Experiment("t", "t", "d", (), faults)


def fault(action="kill-shard", selector=None, mode="all", **parameters):
    parameters = Parameters(**parameters)
    duration_s = 0.0 if action.startswith("kill") else 2.0
    choice = Choice(selector or Selector(), mode)
    return Fault("f", action, choice, duration_s=duration_s, parameters=parameters)


@pytest.mark.parametrize(
    "one", [fault(), fault("stale-disk"), fault("bitflip", site="embedding")], ids=str
)
def test_what_is_done_to_shards_hits_nothing_else(one):
    assert [hit.target for hit in plan(trial(one), TARGETS, 0)] == SHARDS
    coordinator = Selector(labels={ROLE: COORDINATOR_ROLE})
    with pytest.raises(InvalidRequest, match="matches nothing"):
        plan(trial(fault(one.action, coordinator, **vars(one.parameters))), TARGETS, 0)


def on(target, action="kill-shard", start_s=0.0, **parameters):
    one = fault(action, **parameters)
    return Hit("0", one, target, start_s, start_s + (one.duration_s or 0.0))


def guard(*hits, k=2, r=1, ready=NAMES):
    check_blast(hits, [shard_pool([*SHARDS, *AGENTS], ready, k, r)])


@pytest.mark.parametrize("action", ["kill-shard", "stale-disk", "kill"])
def test_at_most_r_failure_domains_of_shards_at_once(action):
    guard(on(SHARDS[0], action), on(SHARDS[1], action))  # of one node
    with pytest.raises(InvalidRequest, match="2 failure domains of the store's shards"):
        guard(on(SHARDS[0], action), on(SHARDS[2], action))
    guard(on(SHARDS[0], action), on(SHARDS[2], action), r=2)
    # One that was replaced needs its time until it is whole.
    with pytest.raises(InvalidRequest, match="2 failure domains"):
        guard(on(SHARDS[0], action), on(AGENTS[2], "kill", start_s=20.0))
    guard(on(SHARDS[0], action), on(SHARDS[2], action, start_s=60.0))
    guard(on(SHARDS[0], action), on(COORDINATOR, "kill"))


def test_flipped_bits_count_until_the_end():
    flip = on(SHARDS[0], "bitflip", site="embedding")
    with pytest.raises(InvalidRequest, match="2 failure domains"):
        guard(flip, on(SHARDS[2], start_s=500.0))
    guard(flip, on(SHARDS[1], start_s=500.0))


def test_so_many_shards_must_stay_that_a_stripe_can_be_read():
    with pytest.raises(InvalidRequest, match="would leave 1 ready"):
        guard(on(SHARDS[0]), ready=frozenset({"shard-1", "shard-5"}), r=1)


# --- in-band


@pytest.mark.parametrize(
    ("one", "kind", "site"),
    [
        (fault("stale-disk"), "STALE_DISK", "OUTPUT"),
        (fault("bitflip", site="embedding", bits=9), "BITFLIP", "EMBEDDING"),
    ],
)
async def test_what_an_agent_is_told(one, kind, site):
    told = []

    class Told(inband.InBand):
        async def _ask(self, target, request):
            told.append((target, request.inject.fault))

    place = Told(lambda *_: None, "run", 3)
    for number in range(2):
        await place.inject(Hit(f"0.{number}", one, SHARDS[0], 0.0, 2.0), 2.0)
    (target, first), (_, second) = told
    assert target == SHARDS[0]
    assert (first.id, first.ttl_ms, first.bits) == ("run-0.0", 2000, one.parameters.bits)
    assert first.kind == faults_pb2.FaultKind.Value(kind)
    assert first.site == faults_pb2.FaultSite.Value(site)
    assert (first.probability, first.program) == (0.0, "")
    assert first.seed != second.seed, "the same bits again would be put right"


async def test_an_agent_that_has_left_with_its_old_disk_is_no_error():
    class Gone(inband.InBand):
        async def _ask(self, target, request):
            raise Unavailable(f"{target.name} is gone")

    place = Gone(lambda *_: None, "run", 3)
    await place.clear(Hit("0", fault("stale-disk"), SHARDS[0], 0.0, 2.0))
    with pytest.raises(Unavailable, match="shard-0 is gone"):
        await place.clear(Hit("0", fault("error"), SHARDS[0], 0.0, 2.0))


def test_the_processes_of_a_shard_take_no_faults_of_calls():
    for target in (AGENTS[0], COORDINATOR):
        with pytest.raises(NotSupported, match="takes kill and a frozen process"):
            inband.check(Hit("0", fault("error"), target, 0.0, 1.0))
    inband.check(Hit("0", fault("error"), SHARDS[0], 0.0, 1.0))
    with pytest.raises(NotSupported, match="only workers have outputs"):
        inband.check(Hit("0", fault("bitflip"), SHARDS[0], 0.0, 1.0))
