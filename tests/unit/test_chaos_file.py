"""Experiment files: read strictly, and the library's are all good."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest
import yaml

from proa.api.v1 import faults_pb2
from proa.errors import SpecError
from proa_chaos import inband
from proa_chaos.experiment import ACTIONS, EMBEDDING, SITES, Choice, Expression, Selector
from proa_chaos.file import experiment_schema, load_experiment
from proa_chaos.measures import SERVING_MEASURES
from proa_chaos.store.measures import STORE_MEASURES

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = sorted((ROOT / "chaos" / "experiments").glob("*.yaml"))

GOOD = """\
apiVersion: proa.dev/v1alpha1
kind: ChaosExperiment
metadata: {name: trial}
spec:
  title: a line
  description: what it teaches
  workload: {rateHz: 20, phases: {before: 1s, during: 1m30s, after: 500ms}, deadline: 250ms}
  faults:
    - name: slow
      action: slow
      mode: fixed
      value: "2"
      selector:
        labelSelectors: {proa.dev/role: worker}
        expressionSelectors: [{key: tier, operator: In, values: [a, b]}]
        pods: {local: [worker-1, worker-2]}
        nodes: [n1]
        namespaces: [local]
      at: 1s
      duration: 10s
      parameters: {delay: 200ms, probability: 0.5}
    - name: cut
      action: partition
      selector: {labelSelectors: {proa.dev/role: worker}}
      target: {mode: all, selector: {labelSelectors: {proa.dev/role: frontend}}}
  hypothesis:
    - {measure: p99Ms, atMost: 3, relativeTo: before}
    - {measure: errors, allowed: []}
  guards:
    - {measure: failedPercent, atMost: 20, window: 1s, samplesMin: 5}
"""


def load(tmp_path, text):
    path = tmp_path / "trial.yaml"
    path.write_text(text, encoding="utf-8")
    return load_experiment(path)


def test_a_file_says_what_it_says(tmp_path):
    found = load(tmp_path, GOOD)
    workload = found.workload
    assert (workload.before_s, workload.during_s, workload.after_s) == (1.0, 90.0, 0.5)
    assert workload.deadline_ms == 250.0
    assert workload.rate_in("during") == workload.rate_in("before") == 20.0
    slow, cut = found.faults
    assert slow.choice == Choice(
        Selector(
            namespaces=("local",),
            labels={"proa.dev/role": "worker"},
            expressions=(Expression("tier", "In", ("a", "b")),),
            pods={"local": ("worker-1", "worker-2")},
            nodes=("n1",),
        ),
        "fixed",
        2,
    )
    assert (slow.at_s, slow.duration_s, slow.parameters.delay_ms) == (1.0, 10.0, 200)
    assert cut.peer is not None
    assert cut.peer.mode == "all"
    assert cut.duration_s is None
    assert [probe.name for probe in found.hypothesis] == [
        "during p99Ms at most 3 x before",
        "during errors only none",
    ]
    assert (found.guards[0].window_s, found.guards[0].samples_min) == (1.0, 5)
    assert found.expected == "Pass"


# (what is replaced, by what, the line and the words of the error)
BAD = [
    ("kind: ChaosExperiment", "kind: Chaos", 2, "kind: 'Chaos' is not one of ChaosExperiment"),
    ("  title: a line\n", "", 5, "spec: missing key 'title'"),
    ("rateHz: 20", "rateHz: fast", 7, "spec.workload.rateHz: 'fast' is not a number"),
    ("rateHz: 20", "rateHz: 0", 7, "spec.workload.rateHz: 0 is out of range"),
    ("rateHz: 20", "rateHz: 10000, queries: 0", 7, "queries: 0 is out of range"),
    ("before: 1s, during: 1m30s", "before: 15h, during: 1m30s", 7, "before: 15h is out of range"),
    ("rateHz: 20, phases: {before: 1s", "rateHz: 9999, phases: {before: 1m", 7, "makes 15"),
    ("rateHz: 20", "rate: 20", 7, "unknown key; did you mean 'rateHz'?"),
    (
        "  title: a line",
        "  title: a line\n  requires: {pool: any}",
        6,
        "spec.requires.pool: 'any' is",
    ),
    (
        "  title: a line",
        "  title: a line\n  requires: {protection: repair}",
        6,
        "spec.requires.protection: 'repair' is not one of none, detect, correct",
    ),
    ("  title: a line", "  title: a line\n  requires: {k: 2}", 6, "spec.requires.k: unknown key"),
    (
        "action: slow",
        "action: slow\n      backend: mesh",
        11,
        "'mesh' is not one of proa, chaos-mesh",
    ),
    ("during: 1m30s", "during: 90", 7, "during: '90' is not a duration such as 300ms"),
    ("during: 1m30s", "during: 20m", 22, "spec.faults[1]: a fault lasts 600 s at most"),
    ("during: 1m30s", "during: 2s", 9, "spec.faults[0]: fault 'slow' outlives the phase"),
    ("action: slow", "action: melt", 10, "spec.faults[0].action: 'melt' is not one of slow, pause"),
    ("action: slow", "action: error", 21, "spec.faults[0].parameters.delay: unknown key"),
    ("      mode: fixed\n", "", 9, "spec.faults[0]: mode 'one' takes no value"),
    ('      value: "2"\n', "", 9, "spec.faults[0]: mode 'fixed' needs a value"),
    ("mode: fixed", "mode: some", 11, "mode: 'some' is not one of one, all, fixed"),
    ("operator: In, ", "operator: Exists, ", 15, "In and NotIn need values"),
    ("delay: 200ms, ", "", 21, "spec.faults[0].parameters: missing key 'delay'"),
    ("name: cut", "name: slow", 22, "spec.faults[1]: another fault is named 'slow'"),
    ("measure: p99Ms", "measure: p98", 27, "hypothesis[0].measure: 'p98' is not one of p50Ms"),
    ("atMost: 3, ", "", 27, "hypothesis[0]: give atMost or atLeast"),
    ("relativeTo: before", "relativeTo: during", 27, "relativeTo needs a limit, and another phase"),
    ("allowed: []", "atMost: 1", 28, "the measure `errors` takes `allowed` instead"),
    ("window: 1s", "window: 0s", 30, "guards[0].window: 0s is out of range"),
    ("{measure: errors, allowed: []}", "}{", 28, "expected the node content"),
]


@pytest.mark.parametrize(("old", "new", "line", "words"), BAD, ids=[words for *_, words in BAD])
def test_an_error_names_file_line_and_key(tmp_path, old, new, line, words):
    assert GOOD.count(old) == 1
    with pytest.raises(SpecError) as caught:
        load(tmp_path, GOOD.replace(old, new))
    assert str(caught.value).startswith(f"{tmp_path / 'trial.yaml'}:{line}: ")
    assert words in str(caught.value)


@pytest.mark.parametrize("site", [site for site in SITES if site != EMBEDDING])
def test_bits_are_flipped_where_the_file_says(tmp_path, site):
    old = "action: slow\n      mode: fixed"
    assert old in GOOD
    text = GOOD.replace(old, "action: bitflip\n      mode: fixed")
    text = text.replace("{delay: 200ms, probability: 0.5}", f"{{target: {site}, bits: 3}}")
    parameters = load(tmp_path, text).faults[0].parameters
    assert (parameters.site, parameters.bits) == (site, 3)
    assert inband.SITES[site] == faults_pb2.FaultSite.Value(site.upper())


def test_a_hypothesis_must_be_able_to_be_false(tmp_path):
    head, _, _ = GOOD.partition("  hypothesis:")
    with pytest.raises(SpecError, match=r"trial\.yaml:5: spec: the hypothesis is empty"):
        load(tmp_path, head + "  hypothesis: []\n")


def test_a_kill_without_a_duration_happens_once(tmp_path):
    text = GOOD.replace("action: partition", "action: kill").replace(
        "      target: {mode: all, selector: {labelSelectors: {proa.dev/role: frontend}}}\n", ""
    )
    assert load(tmp_path, text).faults[1].duration_s == 0.0
    with pytest.raises(SpecError, match="a kill with `every` needs a duration"):
        load(tmp_path, text.replace("action: kill", "action: kill\n      every: 1s"))


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: path.stem)
def test_every_experiment_of_the_library_is_good_and_teaches_something(path):
    found = load_experiment(path)
    assert found.name == path.stem
    assert len(found.description) > 150
    assert any(probe.measure == "wrong" for probe in found.hypothesis)
    assert found.workload.inputs is None, "the library must fit any model"
    assert found.workload.model is None


def test_the_library_has_every_kind_of_fault():
    used = {fault.action for path in LIBRARY for fault in load_experiment(path).faults}
    assert used == set(ACTIONS)


def keys_of(schema):
    """Every key that a file may have."""
    if isinstance(schema, list):
        return set().union(*map(keys_of, schema))
    if not isinstance(schema, dict):
        return set()
    return set(schema.get("properties", ())).union(*map(keys_of, schema.values()))


def test_the_schema_takes_what_the_loader_takes():
    schema = experiment_schema()
    jsonschema.Draft7Validator.check_schema(schema)
    for text in (GOOD, *(path.read_text(encoding="utf-8") for path in LIBRARY)):
        jsonschema.validate(yaml.safe_load(text), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(GOOD.replace("atMost: 3", "atMots: 3")), schema)


def test_the_page_has_every_key_action_measure_and_experiment():
    page = (ROOT / "docs" / "chaos.md").read_text(encoding="utf-8")
    keys = keys_of(experiment_schema())
    assert {"rateHz", "expressionSelectors", "probability", "samplesMin"} <= keys
    names = (
        keys
        | set(ACTIONS)
        | set(SERVING_MEASURES)
        | set(STORE_MEASURES)
        | {path.stem for path in LIBRARY}
    )
    assert {name for name in names if f"`{name}`" not in page} == set()


def test_only_what_chaos_mesh_knows_may_be_left_to_it(tmp_path):
    text = GOOD.replace("action: partition", "action: partition\n      backend: chaos-mesh")
    assert [one.backend for one in load(tmp_path, text).faults] == ["proa", "chaos-mesh"]
    pause = text.replace("action: partition", "action: pause").partition("      target:")[0]
    with pytest.raises(SpecError, match=r"spec\.faults\[1\]\.backend: unknown key"):
        load(tmp_path, pause + "  hypothesis: [{measure: failed, atMost: 0}]\n")
