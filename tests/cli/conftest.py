"""A recipe, a finished run, and the check of every refusal."""

from pathlib import Path

import pytest

from cli_cases import RECIPE, Refused, coco, train
from qmimic.cli import main


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


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command that has to end in one sentence on stderr and exit code 2; gives the sentence."""

    def run(*arguments: object) -> str:
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 2
        said = capsys.readouterr().err
        assert said.startswith("qmimic: ")
        assert said.count("\n") == 1
        assert "Traceback" not in said
        return said

    return run
