"""The worker list of a frontend, as its settings write it."""

from __future__ import annotations

import pytest

from proa.errors import SettingsError
from proa.frontend.addresses import parse_addresses, parse_workers


def test_models_workers_domains_and_roles() -> None:
    found = parse_workers("digits=a:1@node-a, b:2@node-b#parity ; letters=[::1]:3#deployed;")
    assert list(found) == ["digits", "letters"]
    first, second = found["digits"]
    assert (first.name, first.address, first.domain) == ("node-a", "a:1", "node-a")
    assert first.roles == {"deployed", "parity"}
    assert second.roles == {"parity"}
    (third,) = found["letters"]
    assert (third.name, third.domain, third.roles) == ("[::1]:3", "[::1]:3", {"deployed"})


def test_workers_of_one_domain_have_names_of_their_own() -> None:
    workers = parse_workers("digits=a:1@node,a:2@node,b:1@other")["digits"]
    assert [w.name for w in workers] == ["node/a:1", "node/a:2", "other"]
    assert [w.domain for w in workers] == ["node", "node", "other"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a:1", "'a:1' is not one model=workers"),
        ("=a:1", "is not one model=workers"),
        ("digits=a:1;digits=b:1", "is not one model=workers"),
        ("digits=", "model 'digits' needs 1 to 4096 workers"),
        ("digits=a:1,a:1", "each once"),
        ("digits=a:1,a:1@node", "each once"),
        ("digits=a", "address 'a' is not host:port"),
        ("digits=a:0", "with a port 1 to 65535"),
        ("digits=unix:/tmp/socket", "is not host:port"),
        ("digits=a:1#judge", r"'a:1#judge' is not host:port\[@domain\]"),
        ("digits=a:1@", "is not host:port"),
        ("digits= @node", "'@node' is not host:port"),
        ("digits=a:1@b@c", "is not host:port"),
        ("digits=" + ",".join(f"h:{i}" for i in range(1, 4098)), "needs 1 to 4096 workers"),
    ],
)
def test_what_does_not_parse_is_named(text: str, words: str) -> None:
    with pytest.raises(SettingsError, match=f"PROA_FRONTEND_WORKERS: .*{words}"):
        parse_workers(text)


def test_addresses_of_coders() -> None:
    assert parse_addresses(None, "PROA_X") == ()
    assert parse_addresses("a:1, b:2,", "PROA_X") == ("a:1", "b:2")
    with pytest.raises(SettingsError, match="PROA_X: address 'b'"):
        parse_addresses("a:1,b", "PROA_X")
