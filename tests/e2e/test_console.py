"""The console in a real browser: under load, with a dead worker, and when the frontend goes."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from fakes.browser import browser
from fakes.cluster import Load, cluster, frontend, worker_list
from proa.api.v1 import faults_pb2, faults_pb2_grpc

LIVE = "document.getElementById('live').dataset.state == 'live'"
LOST = "document.getElementById('live').dataset.state == 'lost'"
WIDTH = "document.documentElement.scrollWidth - window.innerWidth"
NAMES = "[...document.querySelectorAll('#workers-now tbody tr')].map(r => r.textContent)"
# The colours of a canvas: a chart that was not drawn has one.
COLORS = """(() => {{
  const c = document.getElementById('{id}');
  const d = new Uint32Array(c.getContext('2d').getImageData(0, 0, c.width, c.height).data.buffer);
  return new Set(d).size;
}})()"""
CANVASES = ("latency", "answers", "workers", "policies", "accuracy", "groups")


def text(id_):
    return f"document.getElementById('{id_}').innerText"


async def announce(served):
    stub = faults_pb2_grpc.FaultInjectorStub(served.channel)
    wanted = {
        "id": "<img src=x onerror=alert(1)>",
        "action": "kill",
        "target": "w0",
        "ttl_ms": 60_000,
    }
    await stub.Announce(faults_pb2.AnnounceRequest(**wanted))


@pytest.mark.timeout(90)
async def test_the_console_in_a_browser(tmp_path: Path) -> None:
    spec = "policy: parity, groupMsMax: 1, idleReserve: 0, qualitySample: 1"
    async with (
        browser(tmp_path / "profile") as chromium,
        cluster(tmp_path, spec, workers=4, service_s=0.005, faults=True) as served,
        Load(served.address, clients=2) as load,
    ):
        await load.more(20)
        await announce(served)
        await served.workers[0].stop()
        page = await chromium.open(
            f"http://127.0.0.1:{served.admin_port}/", width=1440, height=1000
        )
        await page.until(LIVE)
        await page.until(f"{NAMES}.some(one => one.startsWith('w0') && one.includes('suspected'))")
        await page.until(f"!{text('agreement')}.includes('not measured')")
        assert await page.evaluate("document.title") == "digits, proa console"
        assert re.search(r"\b\d+\.\d\d %", await page.evaluate(text("tile-slo")))
        # What others name is text, whatever is in it.
        faults = await page.evaluate(text("faults"))
        assert "kill w0" in faults
        assert "<img src=x onerror=alert(1)>" in faults
        assert "parity" in await page.evaluate(text("policy"))
        assert "worker" in await page.evaluate(text("sources"))
        await every_view_is_whole(page)
        await the_keyboard_reads_a_second(page)
        await it_outlives_its_frontend(page, served, tmp_path)
        # What the browser says of refused connections and of our looking at pixels is not the
        # page's.
        other = ("ERR_", "willReadFrequently")
        assert [one for one in page.said if not any(word in one for word in other)] == []


async def it_outlives_its_frontend(page, served, folder):
    served.task.cancel()
    await asyncio.wait([served.task])
    await page.until(LOST)
    banner = await page.evaluate(text("banner"))
    assert re.match(r"No data since \d\d:\d\d:\d\d\. The frontend does not answer\.", banner)
    specs, workers = str(folder / "digits.yaml"), worker_list("digits", served.workers)
    async with frontend(specs=specs, workers=workers, admin_port=served.admin_port):
        await page.until(LIVE)
        assert await page.evaluate("document.getElementById('banner').hidden")


async def every_view_is_whole(page):
    """Light and dark, from 400 to 1600 pixels: nothing sticks out, everything is drawn."""
    papers = set()
    for width, dark in ((1600, False), (1000, True), (400, False), (400, True)):
        await page.look(width=width, height=900, dark=dark)
        await page.evaluate("window.dispatchEvent(new Event('resize'))")
        assert await page.evaluate(WIDTH) <= 0, width
        for canvas in CANVASES:
            assert await page.evaluate(COLORS.format(id=canvas)) > 3, (canvas, width, dark)
        papers.add(await page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(papers) == 2


async def the_keyboard_reads_a_second(page):
    await page.evaluate("document.getElementById('answers').focus()")
    await page.call("Input.dispatchKeyEvent", type="keyDown", key="ArrowLeft", code="ArrowLeft")
    said = await page.until(text("said"))
    assert re.match(r"\d\d:\d\d:\d\d: ", said)
    assert "worker" in said
