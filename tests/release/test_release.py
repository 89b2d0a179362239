"""Wheel and sdist are built from the tree, and the wheel works in an environment of its own.

Nothing is fetched: the fresh environment sees the libraries of the one that the tests run in, but not its qmimic.
"""

import os
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def ran(*command: object, folder: Path) -> str:
    """The output of a command that has to end well, without the tree in its path."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([str(c) for c in command], cwd=folder, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with wheel and sdist, the wheel built from the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    ran(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, folder=folder)
    return folder


@pytest.fixture(scope="module")
def clean(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a fresh environment with the wheel in it."""
    home = tmp_path_factory.mktemp("clean")
    venv.create(home, with_pip=False, symlinks=True)
    site = next(home.glob("lib/python*/site-packages"))
    with zipfile.ZipFile(next(dist.glob("*.whl"))) as wheel:
        wheel.extractall(site)  # what pip does with a pure wheel, but for the scripts
        entries = wheel.read(next(n for n in wheel.namelist() if n.endswith("entry_points.txt"))).decode()
    assert "qmimic = qmimic.cli:main" in entries
    # Behind the wheel's own files, and without the .pth files that would bring the tree back.
    (site / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    where = ran(home / "bin" / "python", "-c", "import qmimic; print(qmimic.__file__)", folder=home).strip()
    assert Path(where).is_relative_to(home)
    return home / "bin"


def test_everything_that_belongs_is_in(dist: Path) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    with zipfile.ZipFile(dist / f"qmimic-{version}-py3-none-any.whl") as wheel:
        names = set(wheel.namelist())
        metadata = wheel.read(f"qmimic-{version}.dist-info/METADATA").decode()
    tree = {
        path.relative_to(ROOT / "src").as_posix()
        for path in (ROOT / "src" / "qmimic").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    recipes = ROOT / "recipes"  # a link in the tree
    tree |= {f"qmimic/recipes/{path.relative_to(recipes)}" for path in recipes.rglob("*.yaml")}
    assert {name for name in names if name.startswith("qmimic/")} == tree
    assert f"qmimic-{version}.dist-info/licenses/LICENSE" in names
    assert "License-Expression: Apache-2.0" in metadata
    with tarfile.open(dist / f"qmimic-{version}.tar.gz") as sdist:
        inside = {name.partition("/")[2] for name in sdist.getnames()}
    # What one needs to build, to read and to check it.
    assert {"pyproject.toml", "LICENSE", "README.md", "CITATION.cff", "tests/conftest.py", "docs/tutorial.md"} <= inside
    assert {"recipes/demo.yaml", "examples/detect.c", "Makefile", "constraints.txt", "tools/house.py"} <= inside


def test_the_wheel_works(clean: Path, tmp_path: Path) -> None:
    python = clean / "python"
    said = ran(python, "-m", "qmimic", "--help", folder=tmp_path)
    assert "train" in said
    assert "pictures" in ran(python, "-m", "qmimic.runtime", "--help", folder=tmp_path)
    (tmp_path / "r.yaml").write_text(
        "name: smoke\ndata: {size: [64, 64], train: select, cache_mib: 0}\nmimic: {mode: none}\nbaselines: []\n"
        "student: {backbone: resnet18/32, steps: 2, batch_size: 2}\nrun: {threads: 1}\n"
    )
    ran(python, "-m", "qmimic", "train", "r.yaml", folder=tmp_path)
    assert (tmp_path / "runs" / "smoke" / "student.safetensors").is_file()


def test_the_citation_is_that_of_this_version() -> None:
    import yaml

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert citation["cff-version"] == "1.2.0"
    assert citation["message"]
    assert all(author["name"] for author in citation["authors"])
