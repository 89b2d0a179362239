"""Real data for the scores."""

import os
from pathlib import Path

import pytest

from qmimic.data.formats import load_dataset
from qmimic.data.sample import Dataset


@pytest.fixture(scope="session")
def bccd() -> Dataset:
    """Blood cells: 59 images with 805 boxes in val, hand-made faults among them."""
    folder = os.environ.get("QMIMIC_DATA")
    if not folder:
        pytest.skip("QMIMIC_DATA does not name the folder with the real data sets")
    root = Path(folder) / "bccd"
    if not root.is_dir():
        pytest.skip(f"{root} is not there")
    return load_dataset(root)
