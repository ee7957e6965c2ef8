"""The redundancy engine: events in, actions out. Pure: no I/O, no clock, no randomness."""

from __future__ import annotations

from proa.dispatch.config import EngineConfig
from proa.dispatch.engine import Engine

__all__ = ["Engine", "EngineConfig"]
