"""Whatever a spec file holds: it loads, or it is a SpecError."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from proa.errors import SpecError
from proa.spec import CodedModel, load

SOUND = {
    "apiVersion": "proa.dev/v1alpha1",
    "kind": "CodedModel",
    "metadata": {"name": "digits"},
    "spec": {
        "model": {
            "program": "digits.pt2",
            "inputs": [{"name": "image", "dtype": "FP32", "shape": [1, 8, 8]}],
            "outputs": [{"name": "logits", "dtype": "FP32", "shape": [10]}],
        },
        "redundancy": {"k": 2, "parity": {"2": ["p.pt2"]}, "hedge": {"delayMs": "auto"}},
        "slo": {"latencyMs": 50},
    },
}
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["", "auto", "2", "-1", "1e400", "nan", "\x00", "9" * 5000, "mean"]),
)
KEYS = st.sampled_from(["k", "r", "coder", "policy", "name", "shape", "parity", "2", "x", "mode"])
JUNK = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=8,
)


def load_text(text: str | bytes) -> CodedModel | None:
    """The model, or None where the file is refused; anything else is a failure."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "junk.yaml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "replace"))
        try:
            return load(file)
        except SpecError:
            return None


def test_the_sound_file_loads():
    assert load_text(yaml.safe_dump(SOUND)) is not None


def places(value: object, path: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    """The path of every value inside `value`."""
    inner: Any = ()
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list):
        inner = enumerate(value)
    return [path, *(p for key, item in inner for p in places(item, (*path, key)))]


def replaced(value: object, path: tuple[object, ...], junk: object) -> object:
    """`value` with what stands at `path` replaced by `junk`."""
    if not path:
        return junk
    if isinstance(value, dict):
        return {k: replaced(v, path[1:], junk) if k == path[0] else v for k, v in value.items()}
    assert isinstance(value, list)
    return [replaced(v, path[1:], junk) if i == path[0] else v for i, v in enumerate(value)]


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(places(SOUND)), JUNK)
def test_junk_in_any_place(path: tuple[object, ...], junk: object):
    load_text(yaml.safe_dump(replaced(SOUND, path, junk), allow_unicode=True))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200) | st.text(alphabet="[]{}:,-?&*!|>'\"%@\\#\n\tU x0", max_size=80))
def test_junk_for_a_file(text: str | bytes):
    load_text(text)


@pytest.mark.parametrize("seed", range(3))
def test_a_sound_file_with_characters_changed(seed: int):
    rng, text = random.Random(seed), yaml.safe_dump(SOUND)
    for _ in range(60):
        at = rng.randrange(len(text))
        load_text(text[:at] + rng.choice("[]{}:,-&*!\"'\\\n\t 9z") + text[at + rng.randrange(3) :])


@pytest.mark.parametrize(
    "text",
    ["[" * 5000, "{a: " * 5000, 'a: "\\UFFFFFFFF"', "%YAML " + "9" * 5000 + ".1\n---\na: 1",
     "a: &x [*x]", "a: *nowhere", "--- 1\n--- 2", "a: !!python/object:os.system x", "? [1]\n: 2"],
    ids=["deep list", "deep mapping", "escape", "version", "loop", "anchor", "two", "tag", "key"],
)  # fmt: skip
def test_yaml_that_breaks_readers(text: str):
    assert load_text(text) is None
