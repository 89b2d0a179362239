"""Files are whole or absent, whatever goes wrong."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from qmimic.errors import InputError
from qmimic.files import replacing, write_text


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folders" / "a.txt"
    write_text(path, "äöü\n")
    assert path.read_bytes() == "äöü\n".encode()
    write_text(path, "")
    assert path.read_bytes() == b""
    assert left(path.parent) == ["a.txt"]


def test_the_suffix_tells_writers_the_format(tmp_path: Path) -> None:
    with replacing(tmp_path / "a.png") as temporary:
        assert temporary.parent == tmp_path
        Image.new("RGB", (3, 2)).save(temporary)
    assert Image.open(tmp_path / "a.png").format == "PNG"


def test_nothing_stands_at_the_path_before_the_end(tmp_path: Path) -> None:
    with replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        assert not (tmp_path / "a.txt").exists()
    assert left(tmp_path) == ["a.txt"]


def test_files_are_as_readable_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a.txt", "a")
        assert os.umask(0o027) == 0o027  # and stays what it was
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, InputError])
def test_an_error_in_the_body_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def spoil() -> None:
        with replacing(path) as temporary:
            temporary.write_text("ne")
            raise error("stop")

    with pytest.raises(error, match="stop"):
        spoil()
    assert path.read_text() == "old"
    assert left(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("call", ["write_text", "replace", "chmod"])
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with monkeypatch.context() as patch:
        patch.setattr(Path, call, no_space)
        with pytest.raises(InputError, match=r"Cannot write .*a\.txt: No space left on device; free some space"):
            write_text(path, "new")
    assert path.read_text() == "old"
    assert left(tmp_path) == ["a.txt"]


def test_a_disk_that_fills_up_before_the_sync_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(InputError, match="No space left"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert left(tmp_path) == ["a.txt"]


def test_a_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    # Root may write into read-only folders, but not into files.
    (tmp_path / "file").write_text("old")
    with pytest.raises(InputError, match=r"Cannot write .*file.deep.a\.txt"):
        write_text(tmp_path / "file" / "deep" / "a.txt", "new")
    assert (tmp_path / "file").read_text() == "old"
    with pytest.raises(InputError, match="Cannot write"):
        write_text(tmp_path / "file" / "a.txt", "new")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes into read-only folders")
def test_a_read_only_folder_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "shut" / "a.txt"
    write_text(path, "old")
    path.parent.chmod(0o555)
    try:
        with pytest.raises(InputError, match="Permission denied"):
            write_text(path, "new")
        assert path.read_text() == "old"
        assert left(path.parent) == ["a.txt"]
    finally:
        path.parent.chmod(0o755)


def test_a_folder_at_the_path_stays(tmp_path: Path) -> None:
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(InputError, match="Cannot write"):
        write_text(tmp_path / "a.txt", "new")
    assert left(tmp_path) == ["a.txt"]


def test_a_kill_in_the_middle_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    code = (
        "import os, pathlib, signal, sys; from qmimic.files import replacing\n"
        "with replacing(pathlib.Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    # What a killed process could not remove is hidden, and no pattern of ours takes it for a result.
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["a.txt"]


@pytest.mark.parametrize("call", ["open", "close", "fsync"])
def test_ctrl_c_just_after_a_system_call_leaves_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Python delivers a signal as soon as a call has returned: the file is there, and nobody yet holds its name."""
    path = tmp_path / "a.txt"
    path.write_text("old")
    done = getattr(os, call)

    def interrupted(*arguments: object, **options: object) -> None:
        done(*arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, call, interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_text(path, "new")
    monkeypatch.undo()
    assert left(tmp_path) == ["a.txt"]
    assert path.read_text() == "old"
