"""What a campaign ran on, for its report."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

import proa


def machine() -> dict[str, str]:
    """Processor, cores, and the versions that numbers may depend on."""
    return {
        "machine": f"{processor()}, {os.cpu_count()} cores",
        "versions": f"proa {proa.__version__}, torch {torch.__version__},"
        f" Python {platform.python_version()}",
    }


def processor() -> str:
    """Its name as Linux has it, else what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
