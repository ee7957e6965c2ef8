"""The demo's report: hand-computed numbers, and files that stand on their own."""

from __future__ import annotations

import io
import json
import math
import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from rich.console import Console

from proa.demo.report import (
    FaultWindow,
    Phase,
    Report,
    ReportConfig,
    RequestRecord,
    build_report,
    print_table,
    write_report,
)
from proa.errors import InvalidRequest

PHASES = (Phase("calm", 0.0, 1.0), Phase("slow", 1.0, 11.0), Phase("killed", 11.0, 12.0))
POLICIES = {"none": "none, 6 workers", "parity": "parity <k=2>", "auto": "auto"}
CONFIG = ReportConfig(POLICIES, PHASES, deadline_s=0.5, facts={"seed": 7, "rate_hz": 100})


def record(
    policy: str = "auto",
    phase: str = "slow",
    *,
    index: int = 0,
    latency_s: float = 0.02,
    ok: bool = True,
    source: str = "worker",
    correct: bool | None = True,
    wrong: bool = False,
) -> RequestRecord:
    intended_s = {"calm": 0.5, "slow": 1.0 + index / 100, "killed": 11.5}[phase]
    error = "" if ok else "DeadlinePassed: no answer in 500 ms"
    return RequestRecord(
        policy, phase, index, intended_s, latency_s, ok, source, correct, wrong, error
    )


def thousand() -> list[RequestRecord]:
    """Latencies of 1 to 1000 ms in an order that is not theirs; the four fastest failed at once."""
    order = [(i * 617) % 1000 for i in range(1000)]
    assert sorted(order) == list(range(1000))
    return [
        record(
            index=i,
            latency_s=(order[i] + 1) / 1000,
            ok=order[i] >= 4,
            source="" if order[i] < 4 else "reconstructed" if order[i] % 2 else "worker",
            correct=None if order[i] < 4 else order[i] % 10 != 0,
            wrong=order[i] in (1, 10, 11),
        )
        for i in range(1000)
    ]


def build(records: list[RequestRecord]) -> Report:
    windows = [
        FaultWindow(policy, kind, "worker-1", start_s, end_s)
        for policy in POLICIES
        for kind, start_s, end_s in (
            ("slow", 1.0, 4.0),
            ("slow", 4.0, 11.0),
            ("killed", 11.0, 12.0),
        )
    ]
    extra = {(policy, phase.name): 12.5 for policy in POLICIES for phase in PHASES}
    return build_report(records, windows, extra, CONFIG)


def test_numbers_of_a_run_by_hand() -> None:
    run = build(thousand()).run("auto", "slow")
    # 1, 2, 3, 4 ms count as 500 ms: what was the 500th value (500 ms) is now the 496th to 500th.
    assert (run.sent, run.failed, run.p999_n, run.extra_work) == (1000, 4, 1000, 12.5)
    assert [run.p50_ms, run.p99_ms, run.p999_ms, run.gap_ms] == pytest.approx([500, 990, 999, 490])
    # 996 answers, of which the odd ones from 5 on are reconstructed; every tenth from 10 is off.
    assert run.answers == {"worker": 498, "reconstructed": 498}
    assert run.accuracy == pytest.approx((996 - 99) / 996)
    # Failed (1) and reconstructed (11) answers are not wrong ones; 10 came from a worker.
    assert run.wrong == 1


def test_failed_requests_count_with_the_deadline() -> None:
    fast = [record(latency_s=0.02, index=i) for i in range(98)]
    failed = [record(latency_s=0.001, ok=False, source="", correct=None) for _ in range(2)]
    run = build(fast + failed).run("auto", "slow")
    assert [run.p50_ms, run.p99_ms, run.failed] == pytest.approx([20, 500, 2])
    assert run.accuracy == 1.0


def test_a_run_without_requests_or_labels_says_so() -> None:
    report = build([record(correct=None)])
    assert report.run("auto", "slow").accuracy is None
    empty = report.run("none", "calm")
    assert (empty.sent, empty.failed, empty.answers, empty.p999_n) == (0, 0, {}, 0)
    assert math.isnan(empty.p50_ms)
    assert empty.to_json()["p50_ms"] is None


def test_runs_come_by_phase_and_policy_and_sources_in_one_order() -> None:
    report = build(
        [record(source="zebra"), record(source="reconstructed"), record(source="worker")]
    )
    assert [(run.phase, run.policy) for run in report.runs] == [
        (phase.name, policy) for phase in PHASES for policy in POLICIES
    ]
    assert report.sources() == ["worker", "reconstructed", "zebra"]
    assert list(report.run("auto", "slow").answers) == ["worker", "reconstructed", "zebra"]


def test_what_does_not_fit_is_refused_and_named() -> None:
    with pytest.raises(InvalidRequest, match="policy 'nonsense'"):
        build([record(policy="nonsense")])
    extra = {(policy, phase.name): 0.0 for policy in POLICIES for phase in PHASES}
    del extra["none", "calm"]
    with pytest.raises(InvalidRequest, match=r"no extra work is given for \[\('none', 'calm'\)\]"):
        build_report([], [], extra, CONFIG)
    with pytest.raises(InvalidRequest, match="'lunch'"):
        build([]).run("auto", "lunch")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    records = thousand() + [record(p, "killed", index=i) for p in POLICIES for i in range(20)]
    records += [record("none", "slow", ok=False, source="", correct=None)]
    write_report(build(records), out)
    return out


def test_json_has_the_runs_the_config_and_the_faults(written: Path) -> None:
    found = json.loads((written / "report.json").read_text())
    assert set(found) == {"runs", "config", "faults"}
    assert len(found["runs"]) == len(PHASES) * len(POLICIES)
    run = next(r for r in found["runs"] if (r["policy"], r["phase"]) == ("auto", "slow"))
    assert set(run) == {
        *("policy", "phase", "sent", "failed", "wrong", "p50_ms", "p99_ms", "p999_ms", "p999_n"),
        *("gap_ms", "answers", "accuracy", "extra_work"),
    }
    assert (run["p99_ms"], run["gap_ms"], run["answers"]["worker"]) == (990.0, 490.0, 498)
    assert (found["config"]["seed"], found["config"]["deadline_s"]) == (7, 0.5)
    assert found["config"]["phases"][1] == {"name": "slow", "start_s": 1.0, "end_s": 11.0}
    assert found["faults"][0]["worker"] == "worker-1"


def test_html_has_every_policy_and_phase_and_loads_nothing(written: Path) -> None:
    html = (written / "report.html").read_text()
    for policy in ("none, 6 workers", "parity &lt;k=2&gt;", "auto"):
        assert html.count(f"<td>{policy}</td>") == len(PHASES)
    for phase in PHASES:
        assert f"<b>{phase.name}</b>" in html
    assert "<k=2>" not in html
    assert "prefers-color-scheme: dark" in html
    assert not re.search(r"https?:|<script|<link|@import|url\(", html)
    pictures = re.findall(r'(?:src|srcset)="([^"]*)"', html)
    assert len(pictures) == 4
    assert all(picture.startswith("data:image/svg+xml;base64,") for picture in pictures)


def test_pictures_are_whole_and_differ_by_paper(written: Path) -> None:
    assert (written / "report.png").read_bytes().startswith(b"\x89PNG\r\n")
    light, dark = (written / name for name in ("report.svg", "report-dark.svg"))
    for picture in (light, dark):
        assert ET.parse(picture).getroot().tag.endswith("svg")
    assert light.read_bytes() != dark.read_bytes()


def test_a_report_without_requests_can_be_drawn(tmp_path: Path) -> None:
    paths = write_report(build([]), tmp_path / "new" / "folder")
    assert all(path.stat().st_size > 0 for path in paths)


def test_table_shows_the_numbers_with_the_sample_count() -> None:
    out = io.StringIO()
    print_table(build(thousand()), Console(file=out, width=200))
    row = next(line for line in out.getvalue().splitlines() if "999.0 (1000)" in line)
    for value in ("auto", "500.0", "990.0", "490.0", " 4 ", "reconstructed\u00a0498", "90.1 %"):
        assert value in row
    assert "12.5 %" in row
    assert "A failed request counts as 500 ms." in out.getvalue()
    assert "not marked reconstructed: 1." in out.getvalue()
