"""Fault injection at the frontend's own port, which clients reach: a token of its own."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from fakes.cluster import frontend, worker_list, write_spec
from fakes.triton_fake import FakeTriton
from proa.client import PermissionDenied, Unauthenticated
from proa.errors import SettingsError
from proa.rpc import Channels
from proa_chaos.experiment import Choice, Fault
from proa_chaos.inband import InBand
from proa_chaos.plan import Hit
from proa_chaos.selection import ROLE, Target


def write_tokens(path: Path) -> Path:
    """Token `plain` of a client, token `chaos` of an experiment."""
    lines = ["tokens:"]
    for name, more in (("plain", "faults: false"), ("chaos", "faults: true")):
        digest = hashlib.sha256(f"secret-{name}".encode()).hexdigest()
        lines += [f"- name: {name}", f"  sha256: {digest}", f"  {more}"]
    path.write_text("\n".join(lines) + "\n")
    return path


async def test_only_a_token_for_it_injects_faults(tmp_path: Path) -> None:
    tokens = write_tokens(tmp_path / "tokens.yaml")
    async with (
        FakeTriton() as worker,
        frontend(
            specs=str(write_spec(tmp_path)),
            workers=worker_list("digits", [worker]),
            tokens=tokens,
            faults=True,
        ) as served,
    ):
        target = Target("frontend", "frontend", served.address, labels={ROLE: "frontend"})
        peer = Target("w0", "w0", labels={ROLE: "worker"})
        cut = Hit("0.0", Fault("f", "partition", Choice(), peer=Choice()), target, 0.0, 1.0, peer)
        channels = Channels(message_bytes_max=1 << 20)
        allowed = InBand(channels, "x", 0, token="secret-chaos")
        await allowed.inject(cut, 60.0)
        assert [fault.program for fault in await allowed.active(target)] == ["w0"]
        plain = InBand(channels, "x", 0, token="secret-plain")
        for call in (plain.inject(cut, 60.0), plain.clear(cut), plain.active(target)):
            with pytest.raises(PermissionDenied, match="'plain' is not for fault injection"):
                await call
        with pytest.raises(Unauthenticated):
            await InBand(channels, "x", 0).clear(cut)
        assert await served.metric("proa_frontend_refused_total", reason="faults") == 3
        assert len(await allowed.active(target)) == 1
        await channels.close()


async def test_without_tokens_it_is_for_loopback_alone(tmp_path: Path) -> None:
    given = {"specs": str(write_spec(tmp_path)), "workers": "digits=127.0.0.1:1", "faults": True}
    with pytest.raises(SettingsError, match=r"PROA_FRONTEND_FAULTS: .*PROA_FRONTEND_TOKENS"):
        async with frontend(**given, host="0.0.0.0"):
            pass
    async with frontend(**given):
        pass
