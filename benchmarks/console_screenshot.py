"""Pictures of the console, light and dark, after five minutes of load with faults in them.

Real Triton workers, as with `proa up`; needs Chromium, and Pillow to make the files small.

    .venv/bin/python benchmarks/console_screenshot.py out/demo/digits.yaml docs/results
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from proa.api.v1 import faults_pb2, faults_pb2_grpc
from proa.client import AsyncClient
from proa.demo.scenario import SERVICE_MS, WORKERS, Episode
from proa.demo.stage import Stage
from proa.load import Outcome, poisson_schedule, run_open_loop
from proa.local.embedded import embedded
from proa.local.topology import Options
from proa.rpc import Channels
from proa.train import held_out

RATE_HZ, LOAD_S, SHOT_S = 60.0, 336.0, 323.0
# (action, worker, from, to), seconds of the run; the last one acts while the picture is taken.
FAULTS = (
    ("slow", 1, 70, 95),
    ("kill", 4, 120, 140),
    ("slow", 2, 165, 190),
    ("drop", 3, 215, 230),
    ("slow", 0, 255, 282),
    ("slow", 5, 308, 334),
)
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SCHEMES = {"dark": 0, "light": 1}  # as Blink numbers them
WINDOW, COLORS_MAX, APART = (1360, 1320), 256, 10


class Run:
    """Load and faults on a running system, and pictures of it."""

    def __init__(self, stage: Stage, admin: str, spec: Path, out: Path) -> None:
        self._stage = stage
        self._admin = admin
        self._out = out
        self._data = held_out(spec.parent)
        self._channels = Channels(message_bytes_max=1 << 20)
        self._faults = faults_pb2_grpc.FaultInjectorStub(  # type: ignore[no-untyped-call]
            self._channels(stage.address)
        )

    async def play(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._load())
            for fault in FAULTS:
                tasks.create_task(self._fault(*fault))
            tasks.create_task(self._shoot())
        await self._channels.close()

    async def _load(self) -> None:
        async with AsyncClient(self._stage.address, deadline_s=1.0, retry=False) as client:

            async def send(index: int) -> Outcome:
                which = index % len(self._data.images)
                image = self._data.images[which : which + 1]
                answer = await client.infer("digits", {"image": image})
                return Outcome(True, answer.source, "")

            schedule = poisson_schedule(RATE_HZ, LOAD_S, 0)
            await run_open_loop(send, schedule, inflight_max=1000)

    async def _fault(self, action: str, worker: int, begin_s: float, end_s: float) -> None:
        await asyncio.sleep(begin_s)
        name, ttl_ms = f"worker-{worker}", round(1000 * (end_s - begin_s))
        if action == "drop":  # the frontend's own: it need not be told
            fault = faults_pb2.Fault(
                id=f"picture/{action}", kind=faults_pb2.DROP, program=name, ttl_ms=ttl_ms
            )
            await self._faults.Inject(faults_pb2.InjectRequest(fault=fault))
            return
        await self._faults.Announce(
            faults_pb2.AnnounceRequest(
                id=f"picture/{begin_s:g}", action=action, target=name, ttl_ms=ttl_ms
            )
        )
        if action == "slow":
            await self._stage.make_slow(Episode(worker, begin_s, end_s))
            return
        self._stage.kill(worker)
        await asyncio.sleep(end_s - begin_s)
        self._stage.restart(worker)

    async def _shoot(self) -> None:
        await asyncio.sleep(SHOT_S)
        for scheme, number in SCHEMES.items():
            path = self._out / f"console-{scheme}.png"
            await asyncio.to_thread(_picture, f"http://{self._admin}/", path, number)


def _picture(url: str, path: Path, scheme: int) -> None:
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        raise SystemExit(f"none of {', '.join(BROWSERS)} is on PATH")
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole.png"
        command = [
            program,
            *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            f"--window-size={WINDOW[0]},{WINDOW[1]}",
            "--virtual-time-budget=3000",
            f"--blink-settings=preferredColorScheme={scheme}",
            f"--user-data-dir={folder}/profile",
            f"--screenshot={whole}",
            url,
        ]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        _few_colors(Image.open(whole).convert("RGB")).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size // 1000} kB")


def _few_colors(picture: Image.Image) -> Image.Image:
    """With a palette of the commonest colours that can be told apart; small lamps keep theirs."""
    found = sorted(picture.getcolors(1 << 24) or (), reverse=True)
    chosen: list[NDArray[np.int64]] = []
    for _, color in found:
        one = np.array(color)
        if all(np.abs(one - other).max() > APART for other in chosen):
            chosen.append(one)
        if len(chosen) == COLORS_MAX:
            break
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.concatenate(chosen).tolist())
    return picture.quantize(palette=palette, dither=Image.Dither.NONE)


async def main(spec: Path, out: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        options = Options(
            run_dir=Path(folder),
            port=0,
            admin_port=0,
            workers=WORKERS,
            faults=True,
            service_ms=SERVICE_MS,
        )
        async with embedded([spec], options) as running:
            await running.supervisor.ready()
            stage = Stage(running, Path(folder))
            try:
                await stage.all_serving()
                await Run(stage, running.topology.admin_address, spec, out).play()
            finally:
                await stage.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
