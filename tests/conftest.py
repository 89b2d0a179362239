"""Fixtures of all tests."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cli_cases import RECIPE, Refused, coco, train
from qmimic.cli import main
from traced_once import tracing_once

os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks the network; without one, asking takes a minute


def pytest_collection_finish() -> None:
    """What is imported stays: the collector of garbage need not walk through it again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real datasets (`bccd`, `raccoon`), named by the environment variable QMIMIC_DATA."""
    named = os.environ.get("QMIMIC_DATA")
    if not named:
        pytest.skip("QMIMIC_DATA is not set; it names the folder with the real datasets bccd and raccoon")
    return Path(named)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The tests' networks are tiny: threads that wait for each other cost more than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def networks_are_traced_once() -> Iterator[None]:
    with tracing_once():
        yield


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
