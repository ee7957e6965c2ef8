"""Who is hit, and when; and the guard against hitting too much."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proa.errors import InvalidRequest
from proa_chaos.blast import Pool, check_blast, worker_pool
from proa_chaos.experiment import (
    Choice,
    Experiment,
    Expression,
    Fault,
    Parameters,
    Probe,
    Selector,
    Workload,
)
from proa_chaos.plan import plan
from proa_chaos.selection import MODEL, ROLE, Target, choose, matching

WORKERS = tuple(
    Target(f"worker-{i}", f"node-{i // 2}", labels={ROLE: "worker", MODEL: "m"}) for i in range(6)
)
FRONTEND = Target("frontend", "frontend", labels={ROLE: "frontend"})
ENCODER = Target("encoder", "encoder", labels={ROLE: "encoder"})
TARGETS = (*WORKERS, FRONTEND, ENCODER)
ANY_WORKER = Selector(labels={ROLE: "worker"})


def names(found):
    return [target.name for target in found]


@pytest.mark.parametrize(
    ("selector", "want"),
    [
        (Selector(), [t.name for t in TARGETS]),
        (Selector(labels={ROLE: "encoder"}), ["encoder"]),
        (Selector(labels={ROLE: "encoder", MODEL: "m"}), []),
        (Selector(nodes=("node-1",)), ["worker-2", "worker-3"]),
        (Selector(namespaces=("elsewhere",)), []),
        (Selector(pods={"local": ("worker-4", "encoder")}), ["worker-4", "encoder"]),
        (Selector(pods={"elsewhere": ("worker-4",)}), []),
        (Selector(expressions=(Expression(ROLE, "In", ("frontend", "x")),)), ["frontend"]),
        (Selector(expressions=(Expression(ROLE, "NotIn", ("worker", "encoder")),)), ["frontend"]),
        (Selector(expressions=(Expression(MODEL, "Exists"),)), [t.name for t in WORKERS]),
        (Selector(expressions=(Expression(MODEL, "DoesNotExist"),)), ["frontend", "encoder"]),
        (Selector(labels={ROLE: "worker"}, nodes=("node-0",)), ["worker-0", "worker-1"]),
    ],
)
def test_all_of_a_selector_has_to_hold(selector, want):
    assert names(matching(selector, TARGETS)) == want


@pytest.mark.parametrize(
    ("mode", "value", "least", "most"),
    [
        ("one", 0, 1, 1),
        ("all", 0, 6, 6),
        ("fixed", 4, 4, 4),
        ("fixed", 40, 6, 6),
        ("fixed-percent", 50, 3, 3),
        ("fixed-percent", 1, 1, 1),
        ("random-max-percent", 50, 1, 3),
    ],
)
def test_a_mode_says_how_many(mode, value, least, most):
    choice = Choice(ANY_WORKER, mode, value)
    for seed in range(50):
        found = choose(choice, TARGETS, random.Random(seed))
        assert least <= len(found) <= most
        assert len(set(names(found))) == len(found)
        assert {target.role for target in found} == {"worker"}


def test_what_matches_nothing_is_an_error_that_names_what_there_is():
    experiment = trial(fault("typo", Choice(Selector(labels={ROLE: "wroker"}))))
    with pytest.raises(InvalidRequest, match=r"fault 'typo': the selector .*wroker.*worker-0"):
        plan(experiment, TARGETS, 0)


def fault(name="f", choice=None, action="slow", **rest):
    return Fault(name, action, choice or Choice(ANY_WORKER), **rest)


def trial(*faults, during_s=5.0, **more):
    return Experiment(
        "trial",
        "t",
        "d",
        (Probe("failed", at_most=0.0),),
        faults,
        workload=Workload(during_s=during_s),
        **more,
    )


@given(seed=st.integers(0, 2**31), every_s=st.floats(0.05, 6.0), at_s=st.floats(0.0, 4.0))
def test_windows_follow_each_other_and_never_hit_the_same_twice_running(seed, every_s, at_s):
    hits = plan(trial(fault(at_s=at_s, every_s=every_s)), TARGETS, seed)
    assert hits == plan(trial(fault(at_s=at_s, every_s=every_s)), TARGETS, seed)
    assert hits[0].start_s == at_s
    assert hits[-1].end_s == 5.0
    for one, other in pairwise(hits):
        assert one.end_s == other.start_s
        assert one.target != other.target
    assert len({hit.id for hit in hits}) == len(hits)


def test_another_seed_chooses_otherwise():
    chosen = {plan(trial(fault()), TARGETS, seed)[0].target.name for seed in range(40)}
    assert chosen == set(names(WORKERS))


def test_too_many_windows_are_refused():
    with pytest.raises(InvalidRequest, match="the limit is 512"):
        plan(trial(fault(every_s=0.05), during_s=100.0), TARGETS, 0)


def test_a_partition_has_two_sides():
    frontends = Choice(Selector(labels={ROLE: "frontend"}), "all")
    (hit,) = plan(trial(fault(action="partition", peer=frontends)), TARGETS, 0)
    assert hit.target.role == "worker"
    assert hit.peer == FRONTEND


POOLS = [
    Pool("the workers of 'm'", WORKERS, frozenset(names(WORKERS)), 1, 3),
    Pool("the frontends", (FRONTEND,), frozenset(["frontend"]), 1, 1),
    Pool("the encoders", (ENCODER,), frozenset(["encoder"]), 1, 0),
]


def blast(*faults, pools=None):
    check_blast(plan(trial(*faults), TARGETS, 0), pools or POOLS)


def on(*wanted, action="slow", **rest):
    choice = Choice(Selector(pods={"local": wanted}), "all")
    return fault("-".join(wanted) + str(rest.get("at_s", "")), choice, action, **rest)


def test_the_guard_lets_pass_what_the_code_can_bear():
    blast(on("worker-0"), on("encoder", action="kill", duration_s=0.0))
    blast(on("worker-0", "worker-1"))  # of one node
    blast(on("worker-0", duration_s=1.0), on("worker-2", at_s=1.0))  # one after the other
    blast(on("worker-0", "worker-2", "worker-5", action="cpu-hog"))  # takes nobody away


@pytest.mark.parametrize(
    "faults",
    [
        [on("worker-0", "worker-2")],
        [on("worker-0", duration_s=2.0), on("worker-2", at_s=1.0)],
        # A killed one is not back yet.
        [on("worker-0", action="kill", duration_s=0.0), on("worker-2", at_s=4.0)],
        [
            on("worker-0", action="pause", duration_s=1.0, parameters=Parameters(how="process")),
            on("worker-2", at_s=3.0),
        ],
        [
            fault("a", Choice(Selector(labels={ROLE: "frontend"})), "partition",
                  peer=Choice(Selector(pods={"local": ("worker-0", "worker-2")}), "all")),
        ],
    ],
)  # fmt: skip
def test_more_than_r_domains_at_once_are_refused(faults):
    with pytest.raises(InvalidRequest, match=r"2 failure domains of the workers of 'm'.*--force"):
        blast(*faults)


def test_k_and_r_must_stay_ready():
    ill = replace(POOLS[0], ready=frozenset(["worker-0", "worker-2", "worker-4"]))
    with pytest.raises(
        InvalidRequest, match="would leave 2 ready of the workers of 'm'; at least 3"
    ):
        blast(on("worker-0"), pools=[ill])
    blast(on("worker-1"), pools=[replace(ill, ready=ill.ready | {"worker-5"})])


def test_the_only_frontend_is_not_taken_away():
    with pytest.raises(InvalidRequest, match="would leave 0 ready of the frontends"):
        blast(on("frontend", action="kill", duration_s=0.0))


PARITY = tuple(
    Target(f"parity-{i}", f"parity-{i}", labels={ROLE: "parity-worker", MODEL: "m"})
    for i in range(2)
)


def dedicated(*ill):
    """WORKERS, three nodes with two each, and a parity pool of two; those of `ill` do not serve."""
    everybody = (*WORKERS, *PARITY)
    return [worker_pool("m", everybody, frozenset(names(everybody)) - set(ill), 2, 1)]


def blast_with_parity(*faults, ill=()):
    check_blast(plan(trial(*faults), (*TARGETS, *PARITY), 0), dedicated(*ill))


def test_a_parity_pool_may_be_lost_as_nobody_waits_for_it():
    blast_with_parity(on("parity-0", "parity-1", action="kill", duration_s=0.0))
    blast_with_parity(on("worker-0"), on("parity-0"))  # one is left to stand in
    blast_with_parity(on("worker-0"), ill=("parity-1",))
    ill = ("worker-2", "worker-3")  # k = 2 are enough where parity has workers of its own
    blast_with_parity(on("worker-0"), ill=ill)
    with pytest.raises(InvalidRequest, match="would leave 1 ready of the workers of 'm'"):
        blast_with_parity(on("worker-0"), ill=(*ill, "worker-4"))


def test_a_worker_may_not_be_lost_together_with_its_parity():
    both = on("parity-0", "parity-1", duration_s=2.0)
    with pytest.raises(InvalidRequest, match=r"node-0 .* 0 of its parity pool .*--force"):
        blast_with_parity(both, on("worker-0", at_s=1.0))
    with pytest.raises(InvalidRequest, match="0 of its parity pool"):
        blast_with_parity(on("worker-0"), on("parity-0"), ill=("parity-1",))
    blast_with_parity(both, on("worker-0", at_s=2.0))


def test_an_experiment_says_which_pool_it_is_for():
    lost = trial(on("worker-0"))
    plan(replace(lost, pool="shared"), TARGETS, 0)
    plan(replace(lost, pool="dedicated"), (*TARGETS, *PARITY), 0)
    for pool, targets in (("dedicated", TARGETS), ("shared", (*TARGETS, *PARITY))):
        with pytest.raises(InvalidRequest, match=rf"spec\.requires\.pool: .* '{pool}'; this one"):
            plan(replace(lost, pool=pool), targets, 0)


@pytest.mark.parametrize("wanted", ["none", "detect", "correct"])
@pytest.mark.parametrize("found", ["none", "detect", "correct"])
def test_an_experiment_says_which_protection_it_needs_at_least(wanted, found):
    flips = trial(fault("flips", Choice(), "bitflip"), protection=wanted)
    targets = [replace(t, protection=found if t.role == "worker" else "none") for t in TARGETS]
    modes = ("none", "detect", "correct")
    if modes.index(found) >= modes.index(wanted):
        assert plan(flips, targets, 0)
        return
    words = rf"spec\.requires\.protection: .* '{wanted}'; this one has '{found}'"
    with pytest.raises(InvalidRequest, match=words):
        plan(flips, targets, 0)


def test_a_drain_hits_all_that_is_on_the_node_of_who_is_chosen():
    choice = Choice(Selector(pods={"local": ("worker-2",)}))
    hits = plan(trial(fault("drain", choice, "drain")), TARGETS, 0)
    assert [hit.target.name for hit in hits] == ["worker-2", "worker-3"]
    nodes = Choice(Selector(nodes=("node-0", "node-2")), "all")
    with pytest.raises(InvalidRequest, match="2 failure domains of the workers of 'm'"):
        blast(fault("drain", nodes, "drain"))
    blast(fault("drain", choice, "drain"))
    later = on("worker-4", at_s=4.0)  # what was drained is not back yet
    with pytest.raises(InvalidRequest, match="2 failure domains"):
        blast(fault("drain", choice, "drain", duration_s=1.0), later)


def test_another_node_is_drained_each_time():
    hits = plan(trial(fault(action="drain", every_s=1.0)), TARGETS, 0)
    starts = sorted({hit.start_s for hit in hits})
    nodes = [{hit.target.domain for hit in hits if hit.start_s == start} for start in starts]
    assert all(len(found) == 1 for found in nodes)
    assert all(one != other for one, other in pairwise(nodes))
