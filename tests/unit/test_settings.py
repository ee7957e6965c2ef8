"""settings: strict, and every error names the variable."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from proa.decoder.settings import DecoderSettings
from proa.encoder.settings import EncoderSettings
from proa.errors import SettingsError
from proa.runtime.settings import REQUIRED, from_env, setting, settings_of


@dataclass(frozen=True)
class Boat:
    crew: int = setting(2, env="PROA_BOAT_CREW", minimum=1, maximum=9)
    speed: float = setting(1.5, env="PROA_BOAT_SPEED", unit="m/s", minimum=0)
    sails: bool = setting(True, env="PROA_BOAT_SAILS")
    hull: str = setting("wood", env="PROA_BOAT_HULL", choices=("wood", "steel"))
    log: Path | None = setting(None, env="PROA_BOAT_LOG")


@dataclass(frozen=True)
class Anchor:
    chain: Path = setting(REQUIRED, env="PROA_ANCHOR_CHAIN", why="it holds the boat")


def test_defaults_and_the_variables_of_others():
    assert from_env(Boat, {"HOME": "/", "PROA_LOG_LEVEL": "INFO", "PROA_ANCHOR_X": "1"}) == Boat()


def test_every_type_is_read():
    environ = {
        "PROA_BOAT_CREW": "3",
        "PROA_BOAT_SPEED": "2e1",
        "PROA_BOAT_SAILS": "False",
        "PROA_BOAT_HULL": "steel",
        "PROA_BOAT_LOG": "x/y",
    }
    assert from_env(Boat, environ) == Boat(3, 20.0, False, "steel", Path("x/y"))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("CREW", "eight", "PROA_BOAT_CREW='eight' is not an integer"),
        ("CREW", "", "PROA_BOAT_CREW='' is not an integer"),
        ("CREW", "1_0", "is not an integer"),
        ("CREW", "9" * 30, "is not an integer"),
        ("CREW", "0", "PROA_BOAT_CREW='0' is below the minimum 1"),
        ("CREW", "10", "PROA_BOAT_CREW='10' is above the maximum 9"),
        ("SPEED", "fast", "PROA_BOAT_SPEED='fast' is not a finite number"),
        ("SPEED", "nan", "is not a finite number"),
        ("SPEED", "inf", "is not a finite number"),
        ("SPEED", "-1", "PROA_BOAT_SPEED='-1' is below the minimum 0 m/s"),
        ("SAILS", "maybe", "PROA_BOAT_SAILS='maybe' is neither true nor false"),
        ("HULL", "glass", "PROA_BOAT_HULL='glass' is not one of wood, steel"),
        ("LOG", "", "PROA_BOAT_LOG is empty"),
        ("CREWS", "1", "PROA_BOAT_CREWS is not a setting; did you mean PROA_BOAT_CREW?"),
    ],
)
def test_a_bad_value_names_variable_value_and_limit(name, value, message):
    with pytest.raises(SettingsError) as caught:
        from_env(Boat, {f"PROA_BOAT_{name}": value})
    assert message in str(caught.value)


def test_a_required_setting_says_what_it_is_for():
    with pytest.raises(SettingsError, match=r"PROA_ANCHOR_CHAIN is not set; .* it holds the boat"):
        from_env(Anchor, {})
    assert from_env(Anchor, {"PROA_ANCHOR_CHAIN": "c"}) == Anchor(Path("c"))


@pytest.mark.parametrize("cls", [EncoderSettings, DecoderSettings])
def test_the_services_document_every_setting(cls):
    known = settings_of(cls)
    assert all(one.why for one in known.values())
    assert len({one.env for one in known.values()}) == len(known)
    assert from_env(cls, {}) == cls()
