"""`proa demo store`, tiny: real processes, a real kill, the same bytes, a report of it."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from proa.demo.store import report
from proa.demo.store.main import tell
from proa.demo.store.plan import ARMS, Plan
from proa.demo.store.records import Story

# A minute: the store's promises are tested in seconds elsewhere.
pytestmark = [pytest.mark.timeout(300), pytest.mark.long]

PLAN = Plan((60, 90, 400), steps=11, kill_at=7, checkpoint_every=4, batch=64, seed=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def story(folder: Path) -> Story:
    return asyncio.run(tell(PLAN, ARMS, folder, Console(file=io.StringIO())))


def test_all_arms_end_with_the_same_bytes_and_losses(story: Story):
    assert [run.arm for run in story.runs] == ["clean", "parity", "checkpoint"]
    assert len({run.sha256 for run in story.runs}) == 1
    assert all(run.same_bytes and run.same_losses for run in story.runs)
    assert all(run.steps == PLAN.steps for run in story.runs)


def test_tables_and_dense_layers_were_really_trained(story: Story):
    weights = [story.played[0].tables[name][0] for name in PLAN.tables]
    assert [len(one) for one in weights] == list(PLAN.rows)
    assert story.played[0].tables["feature-00"][1].max() > 0  # Adagrad's sums
    assert story.runs[0].loss_last != story.runs[0].loss_first


def test_parity_loses_no_step_and_the_checkpoint_those_since_it_was_taken(story: Story):
    clean, parity, checkpoint = story.runs
    assert clean.killed_s is None
    assert clean.recovery_s is None
    assert parity.lost_steps == 0
    assert parity.recovery_s is not None
    assert parity.recovery_s > 0
    # Steps 4, 5 and 6 were done, and perhaps 7.
    assert checkpoint.lost_steps in (3, 4)
    assert checkpoint.checkpoint_bytes > 4 * 65 * sum(PLAN.rows)
    assert checkpoint.recovery_s is not None
    spent = checkpoint.down_s + checkpoint.reload_s + checkpoint.replay_s
    assert checkpoint.recovery_s == pytest.approx(spent, abs=1.0)


def test_the_report_says_so(story: Story, folder: Path):
    paths = report.write(story, folder)
    tree = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert {run["arm"]: run["same_bytes"] for run in tree["runs"]} == dict.fromkeys(
        ("clean", "parity", "checkpoint"), True
    )
    assert len(tree["timelines"]["parity"]["steps"]) == PLAN.steps
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "the same bytes" in page
    assert "http" not in page.partition("<body>")[2]
    assert all(path.stat().st_size > 1000 for path in paths)
