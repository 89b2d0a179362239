"""What is served: folders, files, and what cannot be."""

import shutil
from pathlib import Path

import pytest

from qmimic.errors import InputError
from qmimic.serve.models import Shelf, collect


def names(*paths: Path) -> list[str]:
    return list(collect(paths).models)


def test_folders_and_files(run: Path, shelf: Shelf) -> None:
    assert list(shelf.models) == ["teacher", "student", "student.onnx", "student-int8.onnx"]
    assert shelf.left_out == ()
    assert names(run / "deploy") == ["student.onnx", "student-int8.onnx"]
    assert names(run / "student.safetensors") == ["student"]
    both = collect([run / "deploy", run / "deploy" / "student.onnx"])
    assert list(both.models) == ["deploy/student.onnx", "deploy/student-int8.onnx", "deploy-2/student.onnx"]
    assert list(both.runs) == ["deploy"]


def test_a_damaged_file_of_a_folder_is_left_out_and_told(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "pets")
    broken = tmp_path / "pets" / "deploy" / "student.onnx"
    broken.write_bytes(broken.read_bytes()[:1000])
    found = collect([tmp_path / "pets"])
    assert list(found.models) == ["teacher", "student", "student-int8.onnx"]
    assert len(found.left_out) == 1
    assert found.left_out[0].startswith("student.onnx is left out: ")
    with pytest.raises(InputError, match="cannot be run by ONNX Runtime"):
        collect([broken])


def test_what_cannot_be_served(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no detector"):
        collect([tmp_path])
    (tmp_path / "recipe.yaml").write_text("")
    with pytest.raises(InputError, match="neither a run folder nor a detector"):
        collect([tmp_path / "recipe.yaml"])
    for name in ("none.onnx", "none.safetensors"):
        with pytest.raises(InputError, match="There is no"):
            collect([run / name])
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(InputError, match=r"text\.onnx is left out"):
        collect([tmp_path])
