"""Fixtures of all tests."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real datasets (`bccd`, `raccoon`), named by the environment variable QMIMIC_DATA."""
    named = os.environ.get("QMIMIC_DATA")
    if not named:
        pytest.skip("QMIMIC_DATA is not set; it names the folder with the real datasets bccd and raccoon")
    return Path(named)
