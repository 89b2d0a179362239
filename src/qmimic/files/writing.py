"""The way out: files are written completely or not at all, and never through a link below one of our own folders.

A file is written under a temporary name in the same folder, then renamed.
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
    """Yield a temporary path in the folder of `path`; on success it replaces `path`.

    Whatever was at `path` stays untouched if the body fails or the process dies. Parent folders are created.

    Args:
        path: of the file.
        root: the folder that the user named, as in `own_folder`; None: the file's own.

    Raises:
        InputError: the folder cannot be written or the disk is full.
    """
    temporary: Path | None = None
    try:
        if root is None:
            path.parent.mkdir(parents=True, exist_ok=True)
        else:
            own_folder(path.parent, root)
        temporary = _beside(path)  # named before it is created, so that Ctrl-C in between leaves nothing behind
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


def check_writable(path: Path) -> None:
    """Check, before slow work, that the folder of `path`, or the nearest one above it that is there, can be written.

    Raises:
        InputError: it cannot.
    """
    here = next(parent for parent in path.absolute().parents if parent.is_dir())
    if not os.access(here, os.W_OK):
        code = errno.EROFS if os.statvfs(here).f_flag & os.ST_RDONLY else errno.EACCES
        raise _unwritable(path, OSError(code, os.strerror(code)))


def write_text(path: Path, text: str, root: Path | None = None) -> None:
    """Write `text` as UTF-8 to `path`, completely or not at all. Args: as `replacing`.

    Raises:
        InputError: the folder cannot be written or the disk is full.
    """
    with replacing(path, root) as temporary:
        temporary.write_text(text, encoding="utf-8")


def append_text(path: Path, text: str) -> None:
    """Append `text` as UTF-8 to one of our own files, which is created if missing.

    Raises:
        InputError: it is a link or not a regular file, the folder cannot be written or the disk is full.
    """
    with appending(path) as file:
        file.write(text.encode("utf-8"))


@contextlib.contextmanager
def appending(path: Path) -> Iterator[BinaryIO]:
    """One of our own files, open for appending; created if missing. Raises: as `append_text`."""
    try:
        with os.fdopen(own_handle(path, os.O_WRONLY | os.O_APPEND), "ab") as file:
            yield file
    except OSError as error:
        raise _unwritable(path, error) from error


def own_handle(path: Path, flags: int) -> int:
    """Open one of our own files in place, to append to it or map it into memory; it is created if missing.

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
    """Check that a file to be changed in place has no other name (hard link), whose content would silently change too.

    Raises:
        InputError: it has another name.
    """
    if status.st_nlink > 1:
        raise InputError(
            f"{path} has another name too (a hard link), and that file would change; replace it by a copy."
        )


def own_folder(folder: Path, root: Path) -> Path:
    """Create one of our own folders below one that the user named, and check that no link on the way leads out.

    Args:
        folder: in `root`, at any depth.
        root: may be a link itself.

    Raises:
        InputError: a parent below the root is a link.
        OSError: a folder cannot be created.
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
    """Check, before anything is written, that our files in a folder are only folders and regular files.

    A stranger's folder may contain a link to one of the user's folders, in which files would then be replaced and
    deleted. The folder itself may be a link, or missing; other files in it are not checked.

    Args:
        folder: of a run or a study.
        ours: names in it of files and folders that we make; checked to the bottom.
        others: names of folders that other programs fill, which may contain links.

    Raises:
        InputError: one of our files is a link, a pipe or a device; the message names the first.
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
    """Yield a temporary folder beside `target`; on success it becomes `target`, otherwise it is removed.

    Args:
        target: the folder.
        replace: an existing folder is replaced if this is true for each name in it, so that no foreign file is lost.
            None: it is never replaced.

    Raises:
        InputError: `target` exists and is not replaced, or the disk is full.
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
            raise InputError(f"{own} was not made by qmimic and would be lost; move it away.")


def _exchange(first: Path, second: Path) -> None:
    """Exchange two folders, so that both names exist at any moment.

    If the system has no atomic exchange, the old one is moved aside first, and back if the new one cannot follow.
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
    space = "free some space or " if error.errno in (errno.ENOSPC, errno.EDQUOT, None) else ""
    return InputError(f"Cannot write {path}: {error.strerror or error}; {space}choose another folder.")


def _beside(path: Path) -> Path:
    """A unique hidden name in the folder of `path`.

    The suffix is kept at the end: writers such as Pillow choose their format by it. The stem is shortened: the
    longest names that a disk allows would become too long.
    """
    return path.with_name(f".{path.stem[:16]}-{secrets.token_hex(8)}{path.suffix}")
