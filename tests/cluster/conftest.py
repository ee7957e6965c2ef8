"""Tests on a real cluster: `make e2e`. They need kubectl, helm, a KUBECONFIG and pushed images."""

from __future__ import annotations

import os
import shutil

import pytest

from cluster.settings import Settings, missing


@pytest.fixture(scope="session")
def settings() -> Settings:
    """What the environment says; skips where something is missing."""
    lacks = missing(os.environ, shutil.which)
    if lacks:
        pytest.skip(f"no cluster to test on: {'; '.join(lacks)}")
    return Settings.from_env(os.environ)
