"""Fetching from a server on this machine: whole, interrupted, corrupted, hostile."""

import hashlib
import io
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from qmimic.cli import main
from qmimic.data import download
from qmimic.data.download import Archive, get
from qmimic.errors import InputError


@dataclass
class Server:
    """Files by path; `cut` bytes into an answer the line breaks, so many times."""

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    cut: int = 0
    breaks: int = 0
    ranges: bool = True
    asked: list[str | None] = field(default_factory=list)

    def archive(self, name: str, content: bytes) -> Archive:
        self.files[f"/{name}"] = content
        return Archive(f"{self.url}/{name}", hashlib.md5(content).hexdigest())


@pytest.fixture
def server() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            state.asked.append(asked)
            content = state.files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and state.ranges else 0
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            rest = content[start:]
            if state.breaks:
                state.breaks -= 1
                rest = rest[: state.cut]
            self.wfile.write(rest)

        def log_message(self, *arguments: object) -> None: ...

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state = Server(f"http://127.0.0.1:{web.server_port}")
    threading.Thread(target=web.serve_forever, daemon=True).start()
    yield state
    web.shutdown()
    web.server_close()


def tar_of(files: dict[str, bytes], link: str = "") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        if link:
            info = tarfile.TarInfo("link")
            info.type, info.linkname = tarfile.SYMTYPE, link
            tar.addfile(info)
    return buffer.getvalue()


def zip_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as bundle:
        for name, content in files.items():
            bundle.writestr(name, content)
    return buffer.getvalue()


def silent(name: str, here: int, total: int) -> None: ...


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and download.KEPT not in path.parts
    }


FILES = {"VOCdevkit/VOC2007/a.txt": b"one", "VOCdevkit/VOC2007/b/c.txt": b"two" * 50_000}


def test_archives_are_fetched_and_unpacked_once(server: Server, tmp_path: Path) -> None:
    archives = (server.archive("x.tar", tar_of(FILES)), server.archive("y.zip", zip_of({"d/e.txt": b"three"})))
    seen = []
    get(archives, tmp_path / "data", "", lambda *piece: seen.append(piece))
    assert files_in(tmp_path / "data") == {**FILES, "d/e.txt": b"three"}
    assert ("y.zip", len(server.files["/y.zip"]), len(server.files["/y.zip"])) in seen
    count = len(server.asked)
    get(archives, tmp_path / "data", "", silent)
    assert len(server.asked) == count
    assert not list((tmp_path / "data" / download.KEPT).glob("*.tar"))


def test_a_broken_line_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    archive = server.archive("x.tar", tar_of(FILES))
    server.cut, server.breaks = 1000, 2
    get((archive,), tmp_path, "", silent)
    assert server.asked == [None, "bytes=1000-", "bytes=2000-"]
    assert files_in(tmp_path) == FILES


def test_after_too_many_breaks_the_next_run_goes_on(server: Server, tmp_path: Path) -> None:
    archive = server.archive("x.tar", tar_of(FILES))
    server.cut, server.breaks = 1000, 3
    with pytest.raises(InputError, match=r"was interrupted .*run the same command to continue"):
        get((archive,), tmp_path, "", silent)
    assert files_in(tmp_path) == {}
    get((archive,), tmp_path, "", silent)
    assert server.asked[-1] == "bytes=3000-"
    assert files_in(tmp_path) == FILES


def test_a_server_without_parts_is_asked_for_the_whole(server: Server, tmp_path: Path) -> None:
    archive = server.archive("x.tar", tar_of(FILES))
    server.cut, server.breaks, server.ranges = 1000, 1, False
    get((archive,), tmp_path, "", silent)
    assert files_in(tmp_path) == FILES


def test_a_part_that_is_whole_needs_nothing_more(server: Server, tmp_path: Path) -> None:
    archive = server.archive("x.tar", tar_of(FILES))
    (tmp_path / download.KEPT).mkdir()
    (tmp_path / download.KEPT / "x.tar.part").write_bytes(server.files["/x.tar"])
    get((archive,), tmp_path, "", silent)
    assert files_in(tmp_path) == FILES


def test_a_corrupted_file_is_removed_and_said_so(server: Server, tmp_path: Path) -> None:
    archive = server.archive("x.tar", tar_of(FILES))
    good = server.files["/x.tar"]
    server.files["/x.tar"] = good[:5000] + b"?" + good[5001:]
    with pytest.raises(InputError, match="is not the file it should be"):
        get((archive,), tmp_path, "", silent)
    assert files_in(tmp_path) == {}
    server.files["/x.tar"] = good
    get((archive,), tmp_path, "", silent)
    assert files_in(tmp_path) == FILES


@pytest.mark.parametrize("name", ["../out.txt", "a/../../out.txt", "/tmp/qmimic-out.txt"])
def test_paths_out_of_the_folder_are_refused(server: Server, tmp_path: Path, name: str) -> None:
    for archive in (
        server.archive("x.tar", tar_of({"good.txt": b"1", name: b"2"})),
        server.archive("y.zip", zip_of({"good.txt": b"1", name: b"2"})),
    ):
        with pytest.raises(InputError, match="leads out of its folder"):
            get((archive,), tmp_path / "data", "", silent)
    assert files_in(tmp_path) == {}


def test_a_link_out_of_the_folder_is_refused(server: Server, tmp_path: Path) -> None:
    archive = server.archive("x.tar", tar_of({}, link="/etc"))
    with pytest.raises(InputError, match="which is a link or device"):
        get((archive,), tmp_path / "data", "", silent)


def test_a_file_that_is_no_archive_is_refused(server: Server, tmp_path: Path) -> None:
    for name in ("x.tar", "x.zip"):
        with pytest.raises(InputError, match="cannot be unpacked"):
            get((server.archive(name, b"no archive at all"),), tmp_path / "data", "", silent)


def test_a_missing_file_and_a_missing_server(server: Server, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="answers 404"):
        get((Archive(f"{server.url}/none.tar", ""),), tmp_path, "", silent)
    with pytest.raises(InputError, match="was interrupted"):
        get((Archive("http://127.0.0.1:1/none.tar", ""),), tmp_path, "", silent)


def test_a_full_disk_is_one_sentence(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = server.archive("x.tar", tar_of(FILES))

    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "extractall", full)
        with pytest.raises(InputError, match="No space left on device; free some space"):
            get((archive,), tmp_path, "", silent)
    with monkeypatch.context() as patch:
        patch.setattr(download, "_go_on", full)
        with pytest.raises(InputError, match="No space left on device; free some space"):
            get((server.archive("z.tar", b"z"),), tmp_path, "", silent)
    get((archive,), tmp_path, "", silent)  # and afterwards it goes on
    assert files_in(tmp_path) == FILES


def test_the_command_takes_a_mirror(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = server.archive("VOCtest.tar", tar_of(FILES))
    monkeypatch.setitem(download.SETS, "voc2007", (Archive("http://127.0.0.1:1/far/VOCtest.tar", archive.md5),))
    assert main(["data", "get", "voc2007", "--to", str(tmp_path / "data"), "--mirror", f"{server.url}/"]) == 0
    assert files_in(tmp_path / "data") == FILES
    assert str(tmp_path / "data") in capsys.readouterr().out


def test_every_address_has_a_name_and_a_sum() -> None:
    for archives in download.SETS.values():
        for archive in archives:
            assert archive.url.startswith("https://")
            assert archive.name.endswith((".tar", ".zip"))
            assert len(archive.md5) == 32
