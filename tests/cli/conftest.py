"""A recipe and a finished run."""

from pathlib import Path

import pytest

from cli_cases import RECIPE, coco, train


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a few steps; its data lie beside it in `cats`."""
    root = tmp_path_factory.mktemp("trained")
    (root / "recipe.yaml").write_text(RECIPE)
    coco(root / "cats")
    assert train(root / "recipe.yaml", root / "cats", root / "run") == 0
    return root
