"""Fetching the paper's data: resumed where it stopped, checked by its sum, unpacked without leaving its folder."""

import hashlib
import http.client
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from qmimic.errors import InputError
from qmimic.files import write_text

CHUNK = 1 << 20
TRIES = 3  # of one file, each going on where the last one stopped
TIMEOUT = 60  # seconds without a byte
KEPT = ".downloads"
MAX_UNPACKED = 20 << 30


@dataclass(frozen=True)
class Archive:
    """One file to fetch.

    Attributes:
        url: where its makers, or those who keep it for them, have it.
        md5: its sum as published; of archives this old nothing better is.
    """

    url: str
    md5: str

    @property
    def name(self) -> str:
        """Its file name, by which a mirror has it."""
        return PurePosixPath(self.url).name


_VOC = "https://thor.robots.ox.ac.uk/pascal/VOC"
_WIDER = "https://huggingface.co/datasets/wider_face/resolve/main/data"
SETS = {
    "voc2007": (
        Archive(f"{_VOC}/voc2007/VOCtrainval_06-Nov-2007.tar", "c52e279531787c972589f7e41ab4ae64"),
        Archive(f"{_VOC}/voc2007/VOCtest_06-Nov-2007.tar", "b6e924de25625d8de591ea690078ad9f"),
    ),
    "voc2012": (Archive(f"{_VOC}/voc2012/VOCtrainval_11-May-2012.tar", "6cd6e144f989b92b3379bac3b3de84fd"),),
    "widerface": (
        Archive(f"{_WIDER}/WIDER_train.zip", "3fedf70df600953d25982bcd13d91ba2"),
        Archive(f"{_WIDER}/WIDER_val.zip", "dfa7d7e790efa35df3788964cf0bbaea"),
        Archive(f"{_WIDER}/wider_face_split.zip", "0e3767bcf0e326556d407bf5bff5d27c"),
    ),
}

Progress = Callable[[str, int, int], None]  # name of a file, bytes of it that are here, bytes it has (0: not known)


def get(archives: tuple[Archive, ...], target: Path, mirror: str, progress: Progress) -> None:
    """Fetch archives and unpack them. What is here already is not fetched again.

    Args:
        archives: one of `SETS`.
        target: folder, made if need be.
        mirror: address of a folder that has the same files; empty: their own addresses.
        progress: told of every piece.

    Raises:
        InputError: an address cannot be reached, a file is not what its sum says or leads out of the folder, or the
            disk is full. What was fetched of it is kept, unless it is wrong.
    """
    kept = target / KEPT
    try:
        kept.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"Cannot write {target}: {error.strerror}; choose another folder.") from error
    for archive in archives:
        done = kept / f"{archive.name}.unpacked"
        if done.exists():
            continue
        file = kept / archive.name
        if not file.exists():
            _fetch(archive, f"{mirror.rstrip('/')}/{archive.name}" if mirror else archive.url, file, progress)
        try:
            _unpack(file, target)
        except OSError as error:
            reason = error.strerror or str(error)
            raise InputError(f"Cannot unpack {file}: {reason}; free some space and run the same again.") from error
        write_text(done, archive.md5)
        file.unlink()


def _fetch(archive: Archive, url: str, file: Path, progress: Progress) -> None:
    """Fetch one file beside its place, check it, and rename it."""
    part = file.with_name(f"{file.name}.part")
    for attempt in range(TRIES):
        try:
            _go_on(url, part, progress)
            break
        except HTTPError as error:
            raise InputError(f"{url} answers {error.code} {error.reason}; name another place by --mirror.") from error
        except (URLError, TimeoutError, ConnectionError, http.client.HTTPException, ValueError) as error:
            if attempt == TRIES - 1:
                reason = getattr(error, "reason", None) or error
                raise InputError(
                    f"Fetching {url} was interrupted ({reason}); run the same command to continue, or name "
                    "another place by --mirror."
                ) from error
        except OSError as error:
            reason = error.strerror or str(error)
            raise InputError(f"Cannot write {part}: {reason}; free some space and run the same again.") from error
    with part.open("rb") as whole:
        found = hashlib.file_digest(whole, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != archive.md5:
        part.unlink()
        raise InputError(
            f"{url} is not the file it should be (MD5 {found} instead of {archive.md5}); it was removed; run the same "
            "again or name another place by --mirror."
        )
    part.replace(file)


def _go_on(url: str, part: Path, progress: Progress) -> None:
    """Fetch what is missing of a file."""
    here = part.stat().st_size if part.exists() else 0
    request = Request(url, headers={"Range": f"bytes={here}-"} if here else {})
    try:
        answer = urlopen(request, timeout=TIMEOUT)
    except HTTPError as error:
        if error.code == 416 and here:  # nothing is missing
            return
        raise
    with answer:
        if here and answer.status != 206:
            here = 0  # the server knows no parts: from the beginning
        total = here + int(answer.headers.get("Content-Length") or 0)
        with part.open("ab" if here else "wb") as output:
            while chunk := answer.read(CHUNK):
                output.write(chunk)
                here += len(chunk)
                progress(part.name.removesuffix(".part"), here, total)
    if here < total:
        raise ConnectionError(f"{here} of {total} bytes came")


def _unpack(file: Path, target: Path) -> None:
    """Unpack a tar or zip file, after a look at all it holds.

    Raises:
        InputError: it is damaged, too large, or holds a path that leads out of the folder.
    """
    try:
        if file.suffix == ".zip":
            with zipfile.ZipFile(file) as bundle:
                sizes = {info.filename: info.file_size for info in bundle.infolist()}
                _check(file, target, sizes)
                bundle.extractall(target)
        else:
            with tarfile.open(file) as tar:
                members = tar.getmembers()
                _check(file, target, {member.name: member.size for member in members})
                odd = next((member.name for member in members if not (member.isfile() or member.isdir())), None)
                if odd is not None:
                    raise InputError(f"{file} holds {odd!r}, which is a link or device; it was not unpacked.")
                # Python before 3.11.4 has no filters; what they refuse has been refused above.
                tar.extraction_filter = getattr(tarfile, "data_filter", None)
                tar.extractall(target, members)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise InputError(f"{file} cannot be unpacked ({error}); remove it and run the same again.") from error


def _check(file: Path, target: Path, sizes: dict[str, int]) -> None:
    root = target.resolve()
    for name in sizes:
        if not (target / name).resolve().is_relative_to(root):
            raise InputError(f"{file} holds the path {name!r}, which leads out of its folder; it was not unpacked.")
    if sum(sizes.values()) > MAX_UNPACKED:
        raise InputError(f"{file} holds over {MAX_UNPACKED >> 30} GiB, more than any of these datasets.")
