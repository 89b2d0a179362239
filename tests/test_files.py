"""Files are whole or absent, whatever goes wrong; and a stranger's are read by one way, with limits."""

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qmimic.data.records import RecordFile
from qmimic.errors import InputError
from qmimic.files import (
    MissingError,
    append_text,
    building,
    check_writable,
    is_there,
    own_folder,
    parse_json,
    read_bytes,
    read_json,
    read_text,
    refuse_links,
    replacing,
    write_text,
)
from qmimic.study.table import opened
from qmimic.yaml_text import parse_yaml


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


def every_kind_of_trap(folder: Path) -> dict[str, Path]:
    """What a stranger may put where a file is expected, by the words by which it is refused."""
    made = {kind: folder / f"trap{place}" for place, kind in enumerate(TRAPS)}
    os.mkfifo(made["a named pipe"])
    made["a folder"].mkdir()
    made["leads nowhere"].symlink_to("gone")
    made["leads back to itself"].symlink_to(made["leads back to itself"].name)
    made["a device"].symlink_to("/dev/zero")
    made["leads out of"].symlink_to(folder.parent / "outside.txt")
    return made


TRAPS = ("a named pipe", "a folder", "leads nowhere", "leads back to itself", "a device", "leads out of")


@pytest.mark.parametrize("kind", TRAPS)
def test_a_trap_is_refused_at_once_and_is_never_absent(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "outside.txt").write_text("secret")
    trap = every_kind_of_trap(root)[kind]
    assert is_there(trap)
    for read in (read_bytes, read_text, read_json):
        with pytest.raises(InputError, match=f"{trap.name} .*{kind}") as said:
            read(trap, root=root)
        assert not isinstance(said.value, MissingError)
    if kind != "leads out of":  # what the user names may lie anywhere, but is a file
        with pytest.raises(InputError, match=kind):
            read_bytes(trap)


def test_a_folder_that_leads_out_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "a.txt").write_text("secret")
    root = tmp_path / "root"
    root.mkdir()
    (root / "way").symlink_to(tmp_path / "outside")
    for path in (root / "way" / "a.txt", root / ".." / "outside" / "a.txt"):
        with pytest.raises(InputError, match="leads out of"):
            read_text(path, root=root)
    (root / "b.txt").write_text("own")
    (root / "link.txt").symlink_to("b.txt")
    (tmp_path / "named").symlink_to(root)
    assert read_text(tmp_path / "named" / "link.txt", root=tmp_path / "named") == "own"


def test_what_is_not_there_is_missing_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "gone", tmp_path / "gone" / "a", tmp_path / "file" / "a"):
        assert not is_there(path)
        with pytest.raises(MissingError, match=r"Cannot read .*; check its name"):
            read_bytes(path)
    for name in ("a\0b", "x" * 5000):
        assert not is_there(tmp_path / name)
        with pytest.raises(InputError):
            read_bytes(tmp_path / name, root=tmp_path)


@given(content=st.binary(max_size=300), limit=st.integers(0, 300))
def test_no_more_is_read_than_the_limit_allows(content: bytes, limit: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a")
        path.write_bytes(content)
        if len(content) <= limit:
            assert read_bytes(path, limit) == content
        else:
            with pytest.raises(InputError, match="is over"):
                read_bytes(path, limit)


def test_a_file_that_says_nothing_of_its_size_is_bounded_by_what_is_read() -> None:
    assert len(read_bytes(Path("/proc/self/status"))) > 100  # its size is 0
    with pytest.raises(InputError, match="is over"):
        read_bytes(Path("/proc/self/status"), 100)


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 63) - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda own: st.lists(own, max_size=4) | st.dictionaries(st.text(), own, max_size=4),
    max_leaves=20,
)


@given(PLAIN)
def test_plain_values_come_back_as_they_were(value: object) -> None:
    text = json.dumps(value)
    assert parse_json(text, "a") == value
    assert parse_json(text, "a", strict=False) == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "nests"),
        ('{"a":' * 70 + "1" + "}" * 70, "nests"),
        ("9" * 5000, "64 bits"),
        (str(1 << 63), "64 bits"),
        (f"{'9' * 400}.5", "computed with"),
        ("1e400", "computed with"),
        ("[NaN]", "NaN"),
        ("-Infinity", "Infinity"),
        ('{"a": 1, "b": 2, "a": 3}', "'a' is given twice"),
        (r'"\ud800"', "surrogates"),
        ("[1,", "Expecting"),
        ("", "Expecting"),
    ],
)
def test_json_that_harms_is_one_sentence(text: str, said: str) -> None:
    with pytest.raises(InputError, match=f"^its name is not a whole JSON file .*{said}.*; correct it"):
        parse_json(text, "its name")


def test_labels_may_have_numbers_that_their_reader_refuses_one_by_one() -> None:
    assert repr(parse_json("[NaN, 1e400, 99999999999999999999, 7]", "a", strict=False)) == "[nan, inf, 1e+20, 7]"
    for text in ('{"a": 1, "a": 2}', "[" * 100_000):
        with pytest.raises(InputError):
            parse_json(text, "a", strict=False)


def test_yaml_joins_the_halves_of_a_sign_and_refuses_a_half() -> None:
    assert parse_yaml(r'["\ud83d\ude00", "ä", 😀]', "a") == ["😀", "ä", "😀"]
    with pytest.raises(InputError, match="is not valid YAML"):
        parse_yaml(r'"\ud83d"', "a")


TAGS = ["int", "float", "bool", "null", "map", "seq", "set", "omap", "pairs", "binary", "timestamp", "str", "merge"]
TAGS += ["value", "python/object:os.system", "python/tuple", ""]


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("value", ["_", "x", "[a]", "{a: b}", "", "0x", "1:", "2001-99-99", "[{a: b}]", '"\\uD800"'])
def test_a_tag_gives_a_plain_value_or_one_sentence(tag: str, value: str) -> None:
    for texts in (False, True):
        for text in (f"!!{tag} {value}", f"a: !!{tag} {value}", f"!!{tag} {value}: 1"):
            found, said = None, "recipe.yaml is not valid YAML; correct it."
            try:
                found = parse_yaml(text, "recipe.yaml", texts)
            except InputError as error:
                said = str(error)
            assert said.startswith("recipe.yaml is not valid YAML")
            json.dumps(found, default=lambda date: date.isoformat())


@pytest.mark.parametrize("text", ["a: " + "9" * 4000, "a: 0x" + "f" * 5000, "a: " + "1:" * 9000 + "1", "[" * 3000])
def test_yaml_of_unbounded_cost_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"is not valid YAML|a has a whole number of more than 64 bits; correct it"):
        parse_yaml(text, "a")


OURS = ("pixels", "checkpoints", "report", "stages", "log.jsonl")
LINKS = ("pixels", "checkpoints/deep", "report", "stages/a/log.jsonl")


@pytest.mark.parametrize("name", LINKS)
def test_nothing_is_written_below_a_link(tmp_path: Path, name: str) -> None:
    own, run = tmp_path / "own", tmp_path / "run"
    own.mkdir()
    (own / "a.txt").write_text("mine")
    link = run / name
    link.parent.mkdir(parents=True)
    link.symlink_to(own)
    (tmp_path / "named").symlink_to(run)
    for folder in (run, tmp_path / "named"):
        with pytest.raises(InputError, match=rf"{link.name} is a link, and nothing is written through it"):
            refuse_links(folder, OURS)
        with pytest.raises(InputError, match=rf"{link.name} is a link"):
            write_text(folder / name / "a.txt", "theirs", root=folder)
        with pytest.raises(InputError, match=rf"{link.name} is a link"):
            own_folder(folder / name / "new", folder)
        with pytest.raises(InputError, match=rf"{link.name} is a link"):
            append_text(folder / name, "theirs")
    assert left(own) == ["a.txt"]
    assert (own / "a.txt").read_text() == "mine"
    link.unlink()
    refuse_links(run, OURS)
    write_text(tmp_path / "named" / name / "a.txt", "ours", root=tmp_path / "named")
    assert (run / name / "a.txt").read_text() == "ours"


def test_what_is_written_in_place_has_one_name(tmp_path: Path) -> None:
    """A hard link in a stranger's run folder would carry what we write into the user's own file."""
    mine = tmp_path / "mine.txt"
    mine.write_bytes(bytes(RecordFile.size(3, 8)))
    before = mine.read_bytes()
    log, records, table = tmp_path / "log.jsonl", tmp_path / "bank" / "a.bin", tmp_path / "study.sqlite"
    records.parent.mkdir()
    for path in (log, records, table):
        path.hardlink_to(mine)
    for write in (
        lambda: append_text(log, "more"),
        lambda: RecordFile(records, 3, 8, "bank", "run.bank_mib"),
        lambda: opened(tmp_path).__enter__(),
    ):
        with pytest.raises(InputError, match=r"has another name too \(a hard link\)"):
            write()
    assert mine.read_bytes() == before
    write_text(log, "new")  # takes the name's place and leaves the other's bytes
    assert mine.read_bytes() == before


def test_a_pipe_in_a_folder_of_ours_keeps_nobody_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log.jsonl")
    with pytest.raises(InputError, match=r"log\.jsonl is a named pipe"):
        refuse_links(tmp_path, OURS)
    with pytest.raises(InputError, match=r"log\.jsonl is a named pipe"):
        append_text(tmp_path / "log.jsonl", "line")


def test_folders_that_others_fill_are_not_looked_into(tmp_path: Path) -> None:
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "latest").symlink_to("run-1")
    (tmp_path / "latest").symlink_to("wandb")  # the user's own
    refuse_links(tmp_path, OURS, ("wandb",))
    refuse_links(tmp_path / "gone", OURS)
    with pytest.raises(InputError, match="latest is a link"):
        refuse_links(tmp_path, (*OURS, "wandb"))


def test_a_folder_gives_way_only_as_a_whole_and_if_all_in_it_is_ours(tmp_path: Path) -> None:
    target = tmp_path / "index"
    for text in ("old", "new"):
        with building(target, replace=lambda name: name == "a.npy") as folder:
            (folder / "a.npy").write_text(text)
    assert [path.read_text() for path in target.iterdir()] == ["new"]
    assert left(tmp_path) == ["index"]
    (target / "mine.txt").write_text("mine")
    refused = pytest.raises(InputError, match=r"mine\.txt was not made by qmimic")
    with refused, building(target, replace=lambda name: name == "a.npy"):
        pytest.fail("nothing is built")
    assert left(target) == ["a.npy", "mine.txt"]


@pytest.mark.parametrize("exchange", [True, False])
def test_at_any_moment_of_a_swap_a_whole_folder_is_there(tmp_path: Path, exchange: bool) -> None:
    """The child is killed at every system call in turn that changes a name."""
    target = tmp_path / "index"
    target.mkdir()
    (target / "a").write_text("old")
    code = (
        "import ctypes, os, pathlib, signal, sys; from qmimic import files\n"
        "place, exchange = int(sys.argv[2]), sys.argv[3] == 'True'\n"
        "if not exchange: ctypes.CDLL = lambda *_, **__: object()\n"
        "calls = 0\n"
        "def audit(event, _):\n"
        "    global calls\n"
        "    if event in ('os.rename', 'ctypes.dlsym', 'os.remove', 'os.rmdir'):\n"
        "        calls += 1\n"
        "        if calls == place: os.kill(os.getpid(), signal.SIGKILL)\n"
        "with files.building(pathlib.Path(sys.argv[1]), lambda name: True) as folder:\n"
        "    (folder / 'a').write_text('new')\n"
        "    sys.addaudithook(audit)\n"
    )
    for place in range(1, 20):
        done = subprocess.run([sys.executable, "-c", code, str(target), str(place), str(exchange)], check=False)
        if exchange:
            assert (target / "a").read_text() in ("old", "new")
        kept = [path.read_text() for path in tmp_path.glob("**/a")]  # pathlib's ** finds hidden folders too
        assert kept
        if done.returncode == 0:
            break
    assert (target / "a").read_text() == "new"


def test_a_folder_that_cannot_be_written_is_told_before_slow_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_writable(tmp_path / "not" / "there" / "file")
    assert not (tmp_path / "not").exists()
    asked: list[object] = []
    monkeypatch.setattr(os, "access", lambda path, _: asked.append(path))
    with pytest.raises(InputError, match=r"Cannot write .*file: Permission denied; choose another"):
        check_writable(tmp_path / "not" / "there" / "file")
    assert asked == [tmp_path]
