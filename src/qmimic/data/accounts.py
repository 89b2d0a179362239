"""What became of everything that a dataset's folder holds: used, or left out for a reason that is named and counted."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qmimic.data.labels import NOT_READ
from qmimic.data.sample import Sample
from qmimic.errors import single_line

INDEX = "qmimic-index"  # a folder of ours, never data


@dataclass(frozen=True)
class Account:
    """Things of one sort: `found = used + sum(left_out.values())`.

    Attributes:
        found: how many there are.
        left_out: how many of them are not used, by reason.
    """

    found: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def used(self) -> int:
        """How many are used."""
        return self.found - sum(self.left_out.values())

    def without(self, kind: str, count: int) -> "Account":
        """The account after `count` more things were left out."""
        return Account(self.found, dict(Counter(self.left_out) + Counter({kind: count})))

    def as_json(self) -> dict[str, Any]:
        """Plain values: found, used, left_out."""
        return {"found": self.found, "used": self.used, "left_out": dict(self.left_out)}

    def as_text(self, name: str) -> str:
        """One line for a person."""
        rest = "".join(f", {count:,} left out ({kind.replace('_', ' ')})" for kind, count in self.left_out.items())
        return f"{name}: {self.found:,} found, {self.used:,} used{rest}"


@dataclass(frozen=True)
class Accounts:
    """Of a dataset.

    Attributes:
        pictures: image files.
        labels: what describes one picture: a file of VOC or YOLO, an entry of COCO's `images`.
        boxes: objects, by the labels.
    """

    pictures: Account = Account()
    labels: Account = Account()
    boxes: Account = Account()

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {name: getattr(self, name).as_json() for name in ("pictures", "labels", "boxes")}

    def as_text(self) -> str:
        """Three lines for a person."""
        return "\n".join(getattr(self, name).as_text(name) for name in ("pictures", "labels", "boxes"))


@dataclass
class Tally:
    """What a reader counts while it reads.

    Attributes:
        labels, boxes: how many it met.
        labels_out, boxes_out: those that no sample holds, by reason.
        pictures_out: picture files that no sample shows, and why, where it is not for want of a label.
    """

    labels: int = 0
    boxes: int = 0
    labels_out: Counter[str] = field(default_factory=Counter)
    boxes_out: Counter[str] = field(default_factory=Counter)
    pictures_out: dict[Path, str] = field(default_factory=dict)

    def drop(self, kind: str, boxes: int, picture: Path | None = None) -> None:
        """A label with its boxes is left out."""
        self.labels_out[kind] += 1
        if boxes:
            self.boxes_out[kind] += boxes
        if picture is not None:
            self.pictures_out[picture] = kind

    def close(self, pictures: Iterable[Path], splits: Mapping[str, Sequence[Sample]]) -> Accounts:
        """The accounts, once all is read.

        Args:
            pictures: every picture file of the dataset's folder.
            splits: the samples that were made.
        """
        used = {sample.image for samples in splits.values() for sample in samples}
        known = set(pictures)
        left = Counter(self.pictures_out.get(path) or _why_unused(path) for path in known - used)
        labels, boxes = Counter(self.labels_out), Counter(self.boxes_out)
        for sample in {id(s): s for samples in splits.values() for s in samples}.values():
            if sample.image not in known:
                labels["without_picture"] += 1
                boxes["without_picture"] += len(sample.boxes)
        return Accounts(
            Account(len(known), dict(left)), Account(self.labels, dict(+labels)), Account(self.boxes, dict(+boxes))
        )


def _why_unused(picture: Path) -> str:
    return "format_not_read" if picture.suffix.lower() in NOT_READ else "without_label"


def combined(parts: Sequence[Accounts]) -> Accounts:
    """The accounts of several folders as one."""

    def sum_of(own: Sequence[Account]) -> Account:
        left = sum((Counter(account.left_out) for account in own), Counter[str]())
        return Account(sum(account.found for account in own), dict(left))

    return Accounts(*(sum_of([getattr(part, name) for part in parts]) for name in ("pictures", "labels", "boxes")))


def data_files(root: Path) -> Iterator[Path]:
    """The files below a folder, in order of name; names that begin with a dot and our own index are skipped.

    Folders that are links out of it are not followed, see `links_not_followed`.
    """
    for name, files in _walked(root, []):
        yield from (Path(name, file) for file in sorted(files) if not file.startswith("."))


def links_not_followed(root: Path) -> list[str]:
    """Sentences on the linked folders below a folder that lead out of it, so that nothing in them is read."""
    left: list[Path] = []
    for _ in _walked(root, left):
        pass
    return [
        single_line(
            f"{place.relative_to(root)} is a link out of {root}, and nothing outside that folder is read; copy what it "
            "shows there."
        )
        for place in {own.parent.resolve() / own.name: own for own in reversed(left)}.values()  # each once
    ]


def _walked(root: Path, left: list[Path]) -> Iterator[tuple[str, list[str]]]:
    """Folders below a folder with the names of their files; `left` gets the linked ones that lead out of it."""
    real = root.resolve()
    seen = {real}
    for name, folders, files in os.walk(root, followlinks=True):
        kept = []
        for own in sorted(folders):
            place = Path(name, own)
            if own.startswith(".") or own in (INDEX, "__MACOSX"):
                continue
            if place.is_symlink():  # each place once
                target = place.resolve()
                if not (target.is_relative_to(real) or real.is_relative_to(target)):
                    left.append(place)
                if target in seen or not target.is_relative_to(real) or real.is_relative_to(target):
                    continue
                seen.add(target)
            kept.append(own)
        folders[:] = kept
        yield name, files
