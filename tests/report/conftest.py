"""A finished run on shapes with awkward names, and its page."""

import json
from pathlib import Path

import pytest
from page_cases import CLASSES, Page, read_page

from cli_cases import RECIPE, coco, train
from qmimic.report.page import write_report


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a few steps with scratch and a student that mimics; its data lie beside it."""
    root = tmp_path_factory.mktemp("reported")
    (root / "recipe.yaml").write_text(RECIPE.replace("baselines: []", "baselines: [scratch]"))
    coco(root / "data", count=6, classes=CLASSES)
    # A label that can be passed over, so that there is a defect to tell of.
    labels = root / "data" / "instances_train.json"
    tree = json.loads(labels.read_text())
    tree["annotations"][0]["bbox"] = [4, 6, 300, 20]
    labels.write_text(json.dumps(tree))
    assert train(root / "recipe.yaml", root / "data", root / "run", "data.drop_bad_boxes=true") == 0
    return root / "run"


@pytest.fixture(scope="session")
def written(run: Path) -> Path:
    """Its report, where `qmimic report` puts it."""
    return write_report(run)


@pytest.fixture
def page(written: Path) -> Page:
    return read_page(written)
