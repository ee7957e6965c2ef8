"""The console's page and its JSON: what a browser gets from a frontend's admin port."""

from __future__ import annotations

import asyncio
import json
import re

import pytest

from fakes.cluster import Load, cluster, frontend, until, worker_list, write_spec
from fakes.source_fake import FakeSource, workers
from fakes.triton_fake import FakeTriton
from proa.api.v1 import faults_pb2, faults_pb2_grpc, frontend_pb2
from proa.cli import status as cli_status
from proa.errors import InvalidRequest, NotSupported, Overloaded
from proa.frontend.console import FOLDER, is_own
from proa.frontend.history import STATES, Sliding
from proa.frontend.windows import WINDOWS_MAX, FaultWindows
from proa.runtime.faults import FaultService, FaultTable

METRIC = re.compile(r"\bproa_[a-z0-9_]+\b")


async def console(served, query=""):
    status, text = await served.page(f"/console.json{query}")
    assert status == 200
    return json.loads(text)


def faults_of(served):
    return faults_pb2_grpc.FaultInjectorStub(served.channel)


def announcement(**fields):
    usual = {"id": "slow/1", "action": "slow", "target": "w1", "ttl_ms": 60_000}
    return faults_pb2.AnnounceRequest(**{**usual, **fields})


def states_of(document, name):
    """What the rows say of a worker, oldest first; nothing before the first second is over."""
    if document["model"] is None:
        return []
    (number,) = (one["id"] for one in document["model"]["workers"] if one["name"] == name)
    return [
        STATES[state]
        for row in document["seconds"]
        for found, _, state, _ in row["workers"]
        if found == number
    ]


async def test_it_follows_answers_a_killed_worker_and_faults(tmp_path):
    text = "policy: parity, groupMsMax: 1, qualitySample: 1"
    async with cluster(tmp_path, text, workers=3, faults=True, latency_ms=20) as served:
        injector = faults_of(served)
        await injector.Announce(announcement())
        own = faults_pb2.Fault(id="own", kind=faults_pb2.DROP, program="w2", ttl_ms=200)
        await injector.Inject(faults_pb2.InjectRequest(fault=own))
        async with Load(served.address, clients=2) as load:
            await load.more(30)
            await served.workers[0].stop()

            async def suspected():
                document = await console(served)
                return (
                    "suspected" in states_of(document, "w0")
                    and document["model"]["accuracy"]["samples"]
                )

            await until(suspected)
        found = await console(served)
        later = await console(served, f"?model=digits&since={found['seconds'][0]['t']}")
    assert found["models"] == ["digits"]
    assert found["faults_allowed"]
    assert {(one["id"], one["action"], one["target"]) for one in found["faults"]} == {
        ("slow/1", "slow", "w1"),
        ("own", "drop", "w2"),
    }
    model = found["model"]
    assert model["slo"]["latency_ms"] == 20
    assert (model["policy"]["configured"], model["policy"]["k"]) == ("parity", 2)
    assert model["policy"]["why"]
    assert model["accuracy"]["agreement"] == 1.0
    assert not model["accuracy"]["off"]
    states = {one["name"]: one["state"] for one in model["workers"]}
    assert states == {"w0": "suspected", "w1": "up", "w2": "up"}
    rows = found["seconds"]
    assert sum(sum(row["by"].values()) for row in rows) >= 30
    assert model["minute"]["counts"]["all"] == sum(sum(row["by"].values()) for row in rows)
    p50, p99, p999 = model["minute"]["quantiles_ms"]["all"]
    assert 0 < p50 <= p99 <= p999
    assert sum(row["done"] for row in rows) > 0
    assert [row["t"] for row in rows] == sorted({row["t"] for row in rows})
    times = {row["t"] for row in later["seconds"]}
    assert {row["t"] for row in rows[1:]} <= times
    assert rows[0]["t"] not in times


async def test_each_model_has_its_own_and_two_can_be_told_apart(tmp_path):
    name = "quiet"
    write_spec(tmp_path, "policy: none")
    write_spec(tmp_path, "policy: retry", name)
    fakes = [FakeTriton(), FakeTriton(model=name)]
    async with fakes[0], fakes[1]:
        addresses = ";".join(worker_list(one.model, [one]) for one in fakes)
        async with frontend(specs=str(tmp_path), workers=addresses) as served:
            await served.ready("digits", name)
            async with Load(served.address, clients=1) as load:
                await load.more(5)

                async def answers():
                    document = await console(served, "?model=digits")
                    return document["model"] and document["model"]["minute"]["counts"].get("all")

                await until(answers)
            quiet = await console(served, f"?model={name}&since=nonsense&since=5")
            nobody = await console(served, "?model=%00%ff")
    assert sorted(quiet["models"]) == ["digits", name]
    assert quiet["model"]["name"] == name
    assert quiet["model"]["minute"]["counts"] == {}
    assert quiet["model"]["policy"]["configured"] == "retry"
    assert nobody["model"]["name"] == nobody["models"][0]


async def test_a_worker_that_left_stays_in_the_picture_as_gone(tmp_path):
    fakes = [FakeTriton(), FakeTriton()]
    async with fakes[0], fakes[1]:
        source = FakeSource(*workers(fakes))
        specs = str(write_spec(tmp_path, "policy: none"))
        async with frontend(specs=specs, source=source) as served:

            async def is_(state):
                document = await console(served)
                known = document["model"]["workers"] if document["model"] else []
                return {"name": "w1", "state": state} in [
                    {name: one[name] for name in ("name", "state")} for one in known
                ]

            await until(lambda: is_("up"))
            source.set(*workers(fakes[:1]))
            await until(lambda: is_("gone"))
            assert states_of(await console(served), "w1")[-1] == "up"


async def raw(served, data, *, count=1):
    """What the port answers to `data`: each of `count` connections, at once."""

    async def one():
        reader, writer = await asyncio.open_connection("127.0.0.1", served.admin_port)
        try:
            writer.write(data)
            return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()

    async with asyncio.timeout(30):
        return await asyncio.gather(*(one() for _ in range(count)))


def lines(*found):
    return "\r\n".join((*found, "", "")).encode()


GARBAGE = {
    "unknown path": (lines("GET /consol HTTP/1.1", "Host: x"), 404),
    "path out of the folder": (lines("GET /console/../console.py HTTP/1.1", "Host: x"), 404),
    "another method": (lines("POST /console.json HTTP/1.1", "Host: x"), 501),
    "no method at all": (lines("<script> / HTTP/1.1", "Host: x"), 501),
    "a long path": (lines(f"GET /{'a' * 70_000} HTTP/1.1", "Host: x"), 414),
    "many headers": (lines("GET / HTTP/1.1", *(f"a{i}: b" for i in range(200))), 431),
    "no HTTP": (lines("GET / FTP/1.1"), 400),
    "a stranger's name": (lines("GET /console.json HTTP/1.1", "Host: evil.example:9090"), 421),
}


async def test_garbage_is_refused_and_disturbs_nobody(tmp_path):
    async with cluster(tmp_path, "policy: none", workers=1) as served:
        for what, (data, status) in GARBAGE.items():
            (answer,) = await raw(served, data)
            assert str(status).encode() in answer[:12], what
            assert b"nosniff" in answer or not answer.startswith(b"HTTP"), what
            assert b"<" not in answer.partition(b"\r\n\r\n")[2], what
        idle = [await asyncio.open_connection("127.0.0.1", served.admin_port) for _ in range(80)]
        floods = asyncio.gather(
            *(raw(served, b"\xff\x00" * 5000 + b"\n", count=20) for _ in range(5))
        )
        for _ in range(10):
            assert await served.page("/livez") == (200, "ok\n")
        await floods
        async with Load(served.address, clients=1) as load:
            await load.more(5)
            assert not load.errors
        for _, writer in idle:
            writer.close()
        head = (await raw(served, lines("HEAD /console HTTP/1.1", "Host: localhost")))[0]
        whole = (await raw(served, lines("GET / HTTP/1.1", "Host: [::1]:9090")))[0]
    headers, _, body = head.partition(b"\r\n\r\n")
    assert headers.startswith(b"HTTP/1.0 200")
    assert body == b""
    assert whole.partition(b"\r\n\r\n")[2] == (FOLDER / "index.html").read_bytes()
    for wanted in (b"frame-ancestors 'none'", b"X-Frame-Options: DENY", b"script-src 'self'"):
        assert wanted in headers
    assert b"unsafe" not in headers
    assert b"Access-Control" not in headers


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("", True),
        ("localhost:9090", True),
        ("10.0.0.7:9090", True),
        ("[fe80::1]:9090", True),
        ("demo-proa-frontend:9090", True),
        ("demo.ns.svc.cluster.local.", True),
        ("Demo.ns.SVC:80", True),
        ("evil.example", False),
        ("127.0.0.1.evil.example:9090", False),
        ("localhost.evil.example", False),
    ],
)
def test_only_names_that_no_stranger_can_have_are_own(host, own):
    assert is_own(host) is own


async def test_metrics_come_in_the_format_asked_for(tmp_path):
    async with cluster(tmp_path, "policy: none", workers=1) as served:

        async def kind(accept):
            request = lines("GET /metrics HTTP/1.1", f"Accept: {accept}")
            (answer,) = await raw(served, request)
            return answer.partition(b"\r\n\r\n")[0].decode(), answer.endswith(b"# EOF\n")

        headers, ended = await kind("application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
        assert "application/openmetrics-text; version=1.0.0" in headers
        assert ended
        for accept in ("*/*", "application/openmetrics-text;version=x.y"):
            headers, ended = await kind(accept)
            assert "200" in headers, accept
        assert "text/plain" in (await kind("*/*"))[0]
        # What the console names is there to be scraped.
        text = (await served.page("/metrics"))[1]
    exported = set(re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE))
    named = {name for path in FOLDER.iterdir() for name in METRIC.findall(path.read_text("utf-8"))}
    assert len(named) > 5
    assert named - exported == set()


def test_the_page_loads_nothing_from_elsewhere_and_writes_no_markup():
    for path in FOLDER.iterdir():
        text = path.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//[a-z]+\.", text), path.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|eval\(|\sstyle=|\son\w+=", text)


# --- fault windows


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def seen(windows):
    return [(w.id, w.target, w.begin_unix_ms, w.end_unix_ms) for w in windows.recent()]


def test_windows_begin_end_are_replaced_and_forgotten():
    clock = Clock()
    windows = FaultWindows(clock)
    windows.announce(announcement())
    clock.now += 10
    windows.announce(announcement(ttl_ms=0))
    windows.announce(announcement(ttl_ms=0))  # nothing to end any more
    assert seen(windows) == [("slow/1", "w1", 1_000_000, 1_010_000)]
    windows.announce(announcement(ttl_ms=5000))
    clock.now += 1
    windows.announce(announcement(ttl_ms=5000))  # it goes on
    windows.announce(announcement(target="w2", ttl_ms=5000))  # another one
    assert seen(windows)[1:] == [
        ("slow/1", "w1", 1_010_000, 1_011_000),
        ("slow/1", "w2", 1_011_000, 1_016_000),
    ]
    clock.now += 601
    assert [one[1] for one in seen(windows)] == ["w2"]
    clock.now += 5
    assert seen(windows) == []


def test_windows_are_at_most_256_and_old_ones_make_room():
    clock = Clock()
    windows = FaultWindows(clock)
    windows.announce(announcement(id="short", ttl_ms=1))
    clock.now += 1
    for i in range(WINDOWS_MAX):
        windows.announce(announcement(id=f"a{i}"))
    assert len(windows.recent()) == WINDOWS_MAX
    with pytest.raises(Overloaded, match="256 faults are known"):
        windows.announce(announcement(id="one more"))
    windows.begun(faults_pb2.Fault(id="own", kind=faults_pb2.ERROR, ttl_ms=10))
    assert len(windows.recent()) == WINDOWS_MAX


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"id": ""}, "length of id is 0"),
        ({"id": "é" * 33}, "length of id is 66; the limits are 1 to 64"),
        ({"action": ""}, "length of action is 0"),
        ({"target": "x" * 254}, "length of target is 254; the limits are 1 to 253"),
        ({"ttl_ms": 600_001}, "ttl_ms is 600001; the limits are 0 to 600000"),
    ],
)
def test_announcements_have_limits(fields, message):
    with pytest.raises(InvalidRequest, match=message):
        FaultWindows(Clock()).announce(announcement(**fields))


async def test_own_faults_are_windows_and_an_announced_one_is_named_once():
    clock = Clock()
    windows, table = FaultWindows(clock), FaultTable()
    table.watch(windows)
    table.inject(faults_pb2.Fault(id="cut", kind=faults_pb2.DROP, program="w1", ttl_ms=60_000))
    clock.now += 2
    table.clear("cut")
    assert seen(windows) == [("cut", "w1", 1_000_000, 1_002_000)]
    windows.announce(announcement(id="cut", action="partition"))
    assert [one.action for one in windows.recent()] == ["partition"]


async def test_only_frontends_hear_announcements(tmp_path):
    with pytest.raises(NotSupported):
        await FaultService.Announce.__wrapped__(FaultService(FaultTable()), announcement(), None)


async def test_status_has_the_faults_and_the_cli_shows_the_active_ones(tmp_path):
    async with cluster(tmp_path, "policy: none", workers=1, faults=True) as served:
        await faults_of(served).Announce(announcement(id="[/] odd"))
        await faults_of(served).Announce(announcement(id="over", ttl_ms=5))
        report = await _report(served)
    assert [one.id for one in report.faults] == ["[/] odd", "over"]
    shown = {
        "unix_ms": str(report.faults[1].end_unix_ms),
        "models": [],
        "faults": [
            {name: str(getattr(one, name)) for name in one.DESCRIPTOR.fields_by_name}
            for one in report.faults
        ],
    }
    assert [one["id"] for one in cli_status._active_faults(shown)] == ["[/] odd"]
    cli_status._render(None, shown)


async def _report(served):
    call = served.channel.unary_stream(
        "/proa.api.v1.Frontend/Status",
        request_serializer=frontend_pb2.StatusRequest.SerializeToString,
        response_deserializer=frontend_pb2.StatusReport.FromString,
    )(frontend_pb2.StatusRequest())
    report = await call.read()
    call.cancel()
    return report


def test_sliding_quantiles_are_near_and_forget():
    from proa.frontend.history import Bins, _bin

    sliding = Sliding(2)
    sliding.push({"all": Bins(_bin(ms / 1000) for ms in range(1, 1001))})
    p50, p99, p999 = sliding.quantiles_ms()["all"]
    assert p50 == pytest.approx(501, rel=0.02)
    assert p99 == pytest.approx(991, rel=0.02)
    assert p999 == pytest.approx(1000, rel=0.02)
    sliding.push({"all": Bins()})
    sliding.push({"all": Bins([_bin(0.01)])})
    assert sliding.counts() == {"all": 1}
    assert sliding.quantiles_ms()["all"] == pytest.approx([10, 10, 10], rel=0.02)
