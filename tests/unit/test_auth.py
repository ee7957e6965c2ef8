"""The file of tokens, and what they allow."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from proa.errors import Overloaded, PermissionDenied, SettingsError, Unauthenticated
from proa.frontend.auth import PEERS_MAX, WRONG_MAX, Auth, Bucket
from proa.frontend.tokens import ANYONE, read_tokens


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


FILE = f"""\
tokens:
  - name: team-a
    sha256: {digest("secret-a")}
    models: [digits]
    ratePerSecond: 2
    burst: 3
  - name: team-b
    sha256: {digest("secret-b")}
"""


def bearer(token: str) -> list[tuple[str, str]]:
    return [("user-agent", "test"), ("authorization", f"Bearer {token}")]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def write(path: Path, text: str | None) -> None:
    """Put `text` into the file; None removes it."""
    if text is None:
        path.unlink()
    else:
        path.write_text(text)


def make(path: Path, text: str = FILE, now: Callable[[], float] = Clock()) -> Auth:  # noqa: B008
    path.write_text(text)
    return Auth(path, CollectorRegistry(), now=now)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokens.yaml"


def test_who_calls(path: Path) -> None:
    auth = make(path)
    assert auth.tenant(bearer("secret-a")).name == "team-a"
    assert auth.tenant([("authorization", "bearer secret-b")]).name == "team-b"


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "a token is wanted"),
        ([], "a token is wanted"),
        (bearer("secret"), "the token is not known here"),
        (bearer("secret-a "), "the token is not known here"),
        (bearer(digest("secret-a")), "the token is not known here"),
        (bearer(""), "a token has 1 to 512 characters"),
        (bearer("x" * 513), "a token has 1 to 512 characters"),
        ([("authorization", "Basic c2VjcmV0")], "must be `Bearer TOKEN`, once"),
        ([("authorization", b"\xff")], "must be `Bearer TOKEN`, once"),
        (bearer("secret-a") + bearer("secret-a"), "must be `Bearer TOKEN`, once"),
    ],
)
def test_no_token_or_a_wrong_one(path: Path, metadata: object, message: str) -> None:
    with pytest.raises(Unauthenticated, match=message) as caught:
        make(path).tenant(metadata)  # type: ignore[arg-type]
    assert "secret" not in str(caught.value)


def test_models(path: Path) -> None:
    auth = make(path)
    assert auth.permit(bearer("secret-a"), "digits").name == "team-a"
    assert auth.permit(bearer("secret-b"), "anything").name == "team-b"
    with pytest.raises(PermissionDenied, match="token 'team-a' is not for model 'other'"):
        auth.permit(bearer("secret-a"), "other")


def test_without_a_file_everybody_may(tmp_path: Path) -> None:
    auth = Auth(None, CollectorRegistry())
    assert not auth.wanted
    assert auth.admit(None) is ANYONE
    assert auth.permit(bearer("whatever"), "digits") is ANYONE


def test_the_rate_of_a_token(path: Path) -> None:
    clock = Clock()
    auth = make(path, now=clock)
    for _ in range(3):
        auth.admit(bearer("secret-a"))
    with pytest.raises(Overloaded, match="'team-a': more than 2 calls per second") as caught:
        auth.admit(bearer("secret-a"))
    assert caught.value.retry_after_s == pytest.approx(0.5)
    auth.admit(bearer("secret-b"))
    clock.now += 0.5
    auth.admit(bearer("secret-a"))
    with pytest.raises(Overloaded):
        auth.admit(bearer("secret-a"))


def test_a_bucket_never_holds_more_than_its_size() -> None:
    bucket = Bucket(2.0, 0.0)
    assert [bucket.take(2.0, 1.0, 1e9) for _ in range(3)] == [0.0, 0.0, 1.0]


def test_guessing_is_slowed_per_address_in_bounded_memory(path: Path) -> None:
    clock = Clock()
    auth = make(path, now=clock)
    error = Unauthenticated("no")
    for _ in range(WRONG_MAX):
        assert auth.blame("ipv4:10.0.0.1", error, missing=False) is error
    said = auth.blame("ipv4:10.0.0.1", error, missing=False)
    assert isinstance(said, Overloaded)
    assert said.retry_after_s == pytest.approx(6.0)
    assert auth.blame("ipv4:10.0.0.2", error, missing=True) is error
    clock.now += 6.0
    assert auth.blame("ipv4:10.0.0.1", error, missing=False) is error
    for i in range(PEERS_MAX + 10):
        auth.blame(f"ipv6:{i}", error, missing=False)
    assert len(auth._peers) == PEERS_MAX


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"tokens\.yaml:1: file is empty"),
        ("[]", r"tokens\.yaml:1: file: must be a mapping"),
        ("tokens: 1", r"tokens\.yaml:1: tokens: must be a list"),
        ("tokens:\n- name: a", r"tokens\.yaml:2: tokens\[0\]: missing key 'sha256'"),
        ("tokens:\n- name: a\n  sha256: abc", r"tokens\.yaml:3: tokens\[0\]\.sha256: "),
        ("tokens:\n- name: a\n  token: abc", r"missing key 'sha256'"),
        (FILE + "    model: [x]\n", r":9: .*unknown key; did you mean 'models'\?"),
        (FILE.replace("ratePerSecond: 2", "ratePerSecond: 0"), r"ratePerSecond: 0 is out of range"),
        (FILE.replace("burst: 3", "burst: many"), r":6: .*'many' is not an integer"),
        (FILE + "    faults: perhaps\n", r":9: .*'perhaps' is not one of true, false"),
        (FILE.replace("team-b", "team-a"), r"name 'team-a' stands here twice"),
        (FILE.replace(digest("secret-b"), digest("secret-a")), r"sha256 '.*' stands here twice"),
        (f"tokens: [{'x, ' * 1001}]", r"1001 elements; the limit is 1000"),
    ],
)
def test_a_bad_file_is_named_with_its_line(path: Path, text: str, message: str) -> None:
    path.write_text(text)
    with pytest.raises(SettingsError, match=f"PROA_FRONTEND_TOKENS: .*{message}"):
        read_tokens(path)


def test_a_file_too_large_or_gone(path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        read_tokens(path)
    path.write_text("#" * ((1 << 20) + 1))
    with pytest.raises(SettingsError, match="larger than 1048576 bytes"):
        read_tokens(path)


async def test_a_changed_file_is_taken_and_a_broken_one_is_not(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    auth = make(path)
    write(path, FILE.replace(digest("secret-a"), digest("secret-c")))
    await auth.reload()
    assert auth.tenant(bearer("secret-c")).name == "team-a"
    with pytest.raises(Unauthenticated):
        auth.tenant(bearer("secret-a"))
    with caplog.at_level(logging.WARNING):
        write(path, "tokens: broken")
        await auth.reload()
        await auth.reload()
        write(path, None)
        await auth.reload()
    assert auth.tenant(bearer("secret-c")).name == "team-a"
    assert len(caplog.records) == 2
    write(path, FILE)
    await auth.reload()
    assert auth.tenant(bearer("secret-a")).name == "team-a"
