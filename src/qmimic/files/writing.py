"""The way out: what is written is whole or absent, and nothing is written through a link below a folder of ours.

A file is written beside its place, then renamed.
"""

import contextlib
import ctypes
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import BinaryIO

from qmimic.errors import InputError
from qmimic.files.reading import is_there, kind_of, unreadable

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # Linux


@contextlib.contextmanager
def replacing(path: Path, root: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; on success it takes the place of `path`.

    Whatever stood at `path` stays untouched if the body fails or the process dies. Parent folders are made.

    Args:
        path: of the file.
        root: the folder that a person named, as in `own_folder`; None: the file's own.

    Raises:
        InputError: the folder cannot be written or the disk is full.
    """
    temporary: Path | None = None
    try:
        if root is None:
            path.parent.mkdir(parents=True, exist_ok=True)
        else:
            own_folder(path.parent, root)
        temporary = _beside(path)  # named before it is made: Ctrl-C between the two leaves nothing behind
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str, root: Path | None = None) -> None:
    """Write `text` as UTF-8 to `path`, wholly or not at all. Args: as `replacing`.

    Raises:
        InputError: the folder cannot be written or the disk is full.
    """
    with replacing(path, root) as temporary:
        temporary.write_text(text, encoding="utf-8")


def append_text(path: Path, text: str) -> None:
    """Add `text` as UTF-8 to the end of a file of ours, which is made if it is missing.

    Raises:
        InputError: it is a link or no regular file, the folder cannot be written or the disk is full.
    """
    with appending(path) as file:
        file.write(text.encode("utf-8"))


@contextlib.contextmanager
def appending(path: Path) -> Iterator[BinaryIO]:
    """A file of ours, open to add to its end; made if it is missing. Raises: as `append_text`."""
    try:
        with os.fdopen(own_handle(path, os.O_WRONLY | os.O_APPEND), "ab") as file:
            yield file
    except OSError as error:
        raise _unwritable(path, error) from error


def own_handle(path: Path, flags: int) -> int:
    """A file of ours, opened in place, to append to it or to map it into memory; made if it is missing.

    Returns:
        A handle, which the caller closes.

    Raises:
        InputError: it is a link, has a second name or is not a regular file.
        OSError: it cannot be opened.
    """
    handle = -1
    try:
        handle = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        status = os.fstat(handle)
        _check_ours(path, status.st_mode)
        check_one_name(path, status)
        own, handle = handle, -1
        return own
    except OSError:
        if is_there(path):
            _check_ours(path, path.lstat().st_mode)
        raise
    finally:
        if handle >= 0:
            os.close(handle)


def check_one_name(path: Path, status: os.stat_result) -> None:
    """Check that a file that is written in place has no other name, of which nobody would know that it changes.

    Raises:
        InputError: it has one.
    """
    if status.st_nlink > 1:
        raise InputError(
            f"{path} has another name too (a hard link), and that file would change; replace it by a copy."
        )


def own_folder(folder: Path, root: Path) -> Path:
    """Make a folder of ours below one that a person named, and check that no link leads out on the way.

    Args:
        folder: in `root`, at any depth.
        root: may be a link itself.

    Raises:
        InputError: a parent below the root is a link.
        OSError: one cannot be made.
    """
    root.mkdir(parents=True, exist_ok=True)
    here = root
    for name in folder.relative_to(root).parts:
        here = here / name
        with contextlib.suppress(FileExistsError):
            here.mkdir()
        mode = here.lstat().st_mode
        if stat.S_ISLNK(mode):
            raise _in_the_way(here, mode)
    return folder


def refuse_links(folder: Path, ours: Collection[str], others: Collection[str] = ()) -> None:
    """Check what we make in a folder: folders and regular files alone, before anything is written there.

    What came from a stranger may hold a link to a folder of the user's, in which files would then be replaced and
    deleted. The folder itself may be a link, or missing, and what else lies in it is nobody's business.

    Args:
        folder: of a run or a study.
        ours: names in it of files and folders that we make, looked into to the bottom.
        others: names of folders that other programs fill, which may hold links.

    Raises:
        InputError: something of ours is a link, a pipe or a device; the first one is named.
    """
    waiting = [folder / name for name in sorted({*ours, *others})]
    try:
        while waiting:
            path = waiting.pop()
            if not is_there(path):
                continue
            mode = path.lstat().st_mode
            if stat.S_ISDIR(mode):
                if path.parent != folder or path.name not in others:
                    waiting += [Path(entry.path) for entry in os.scandir(path)]
            else:
                _check_ours(path, mode)
    except OSError as error:
        raise unreadable(Path(error.filename or folder), error) from error


@contextlib.contextmanager
def building(target: Path, replace: Callable[[str], bool] | None = None) -> Iterator[Path]:
    """Yield a temporary folder beside `target`; on success it becomes `target`, else it goes.

    Args:
        target: the folder.
        replace: a folder that is there gives way, if this is true of each name in it: nobody else's file is lost.
            None: it does not.

    Raises:
        InputError: `target` is there and does not give way, or the disk is full.
    """
    target = target.parent.resolve() / target.name if replace else target.resolve()
    _check_gives_way(target, replace)
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = _beside(target)
        temporary.mkdir(0o700)
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        if replace and is_there(target):
            _check_gives_way(target, replace)
            _exchange(temporary, target)
        else:
            temporary.replace(target)
    except OSError as error:
        raise _unwritable(target, error) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)  # what was built, or the old one


def _check_gives_way(target: Path, replace: Callable[[str], bool] | None) -> None:
    if not is_there(target):
        return
    there = sorted(target.iterdir()) if target.is_dir() and not target.is_symlink() else [target]
    if replace is None and there:
        raise InputError(f"{target} exists and is not empty; name a new folder.")
    for own in there:
        if own is target or (own.is_dir() and not own.is_symlink()) or not (replace and replace(own.name)):
            raise InputError(f"{own} is not a file that qmimic made, and it would be lost; move it away.")


def _exchange(first: Path, second: Path) -> None:
    """Two folders change places, so that there is one at each of the two names at any moment.

    Where the system cannot do it in one go, the old one is moved aside first and back if the new one cannot follow.
    """
    with contextlib.suppress(AttributeError):
        library = ctypes.CDLL(None, use_errno=True)
        if library.renameat2(AT_FDCWD, os.fsencode(first), AT_FDCWD, os.fsencode(second), RENAME_EXCHANGE) == 0:
            return
        if ctypes.get_errno() not in (errno.EINVAL, errno.ENOSYS):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    aside = _beside(second)
    second.replace(aside)
    try:
        first.replace(second)
    except BaseException:
        aside.replace(second)
        raise
    aside.replace(first)


def _check_ours(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise _in_the_way(path, mode)


def _in_the_way(path: Path, mode: int) -> InputError:
    return InputError(
        f"{path} is {kind_of(mode)}, and nothing is written through it; remove it or choose another folder."
    )


def _unwritable(path: Path, error: OSError) -> InputError:
    return InputError(f"Cannot write {path}: {error.strerror or error}; free some space or choose another folder.")


def _beside(path: Path) -> Path:
    """A hidden name in the folder of `path` that nobody else has.

    The suffix is kept at the end: writers such as Pillow choose their format by it. The stem is not all kept: the
    longest names that a disk takes would become too long.
    """
    return path.with_name(f".{path.stem[:16]}-{secrets.token_hex(8)}{path.suffix}")
