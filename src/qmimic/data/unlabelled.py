"""Pictures without labels, which a teacher is to label: read as strictly as those with labels; none is val's.

A picture of val that was saved again, smaller, in grey or at another quality, has other pixels. It is known by its
thumbnail. Those of different photographs are far apart: over 3.6 grey levels (root mean square) between any two of
animals and deeppcb, also where one is mirrored or turned, and below 1.3 of one stored at a quality of 40.
"""

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qmimic.config import DataConfig
from qmimic.data.accounts import Account, data_files, links_not_followed
from qmimic.data.columns import Columns, in_columns
from qmimic.data.faults import kept
from qmimic.data.formats import READERS, looks
from qmimic.data.images import FORMATS, THUMB, Look, image_size, look_at
from qmimic.data.labels import NOT_READ, apart, is_picture, make_sample
from qmimic.data.sample import Dataset, Sample
from qmimic.data.splits import TRAIN, UNLABELLED, VAL
from qmimic.errors import InputError, single_line

ALIKE = 2.0  # grey levels, root mean square of two thumbnails: from here on they show different pictures
PLAIN = 4.0  # grey levels, deviation within a thumbnail: below it there is nothing to know a picture by
AT_ONCE = 1 << 10  # pictures that are compared with all of val


@dataclass(frozen=True)
class Unlabelled:
    """Pictures that a teacher is to label.

    Attributes:
        dataset: of the one split UNLABELLED, whose samples have no boxes; classes are those of the labelled pictures.
        remarks: sentences for a person: what is used, what is not, and why.
    """

    dataset: Dataset
    remarks: tuple[str, ...] = ()

    @property
    def samples(self) -> Columns:
        """The pictures."""
        return in_columns(self.dataset.splits, self.dataset.root)[UNLABELLED]


def without_labels(dataset: Dataset, samples: Sequence[Sample]) -> Unlabelled:
    """Samples of a dataset as if nobody had labelled them."""
    bare = tuple(kept(one, np.zeros(len(one.boxes), np.bool_)) for one in samples)
    return Unlabelled(_dataset(dataset.name, dataset.root, bare, dataset), (f"{len(bare):,} pictures without labels.",))


def pictures_of(root: Path, labelled: Dataset, config: DataConfig) -> Unlabelled:
    """The pictures below a folder, each once, without those that are trained on with their labels.

    Args:
        root: the folder; labels in it are not read.
        labelled: checked, of the splits TRAIN and VAL.
        config: `drop_bad_boxes` leaves out pictures that cannot be read.

    Raises:
        InputError: there is no such folder, none of its files is a picture, one cannot be read, or one is VAL's.
    """
    files, left = _files(root)
    sizes = {size for path in files if (size := _size(path, root))}
    # Train's are known by equal pixels, val's by what they look like too, whatever their size.
    val = in_columns(labelled.splits, labelled.root)[VAL]
    others = {TRAIN: _of_sizes(labelled, TRAIN, sizes), VAL: [val[place] for place in range(len(val))]}
    beside = {sample.image: labelled.root for own in others.values() for sample in own if sample.image}
    seen = looks({**beside, **dict.fromkeys(files, root)})
    bad = [one for path in files if isinstance(one := seen[path], InputError)]
    if bad and not config.drop_bad_boxes:
        raise InputError(
            f"{root} has {len(bad)} pictures that cannot be read, the first: {str(bad[0]).rstrip('.')}; or leave them "
            "out (data.drop_bad_boxes=true)."
        )
    left["unreadable_image"] = len(bad)
    found = {path: one for path in files if isinstance(one := seen[path], Look)}
    known = {split: [_look(labelled, sample, seen) for sample in own] for split, own in others.items()}
    numbers = {split: {one.pixels for one in own if one} for split, own in known.items()}
    spoilt = [path for path, one in found.items() if one.pixels in numbers[VAL]]
    if spoilt:
        raise InputError(
            f"{len(spoilt)} of {len(files)} pictures of {root} are in {config.scored} too, the first: "
            f"{spoilt[0].relative_to(root)}; scores on pictures that the student has seen say nothing. Take them out "
            "of data.unlabelled."
        )
    samples: dict[int, Sample] = {}
    alike = _alike(list(found.values()), [one for one in known[VAL] if one])
    for (path, one), of_val in zip(found.items(), alike.tolist(), strict=True):
        if of_val:
            left["looks_like_one_of_val"] += 1
        elif one.pixels in numbers[TRAIN]:
            left["trained_on_with_labels"] += 1
        elif one.pixels in samples:
            left["same_picture_twice"] += 1
        else:
            name = path.relative_to(root).as_posix()
            samples[one.pixels] = make_sample(name, path, [], [], one.size)
    account = Account(len(samples) + left.total(), dict(+left))
    said = [single_line(account.as_text(f"unlabelled pictures of {root}"))]
    if not samples:
        raise InputError(f"{root} has no picture to learn from ({said[0]}); set data.unlabelled to other pictures.")
    said += [*_not_read(root), *links_not_followed(root)]
    return Unlabelled(_dataset(root.name, root, tuple(samples.values()), labelled), tuple(said))


def _files(root: Path) -> tuple[list[Path], Counter[str]]:
    """The pictures below a folder in formats that are read, and how many others there are; errors as `pictures_of`."""
    if not root.is_dir():
        raise InputError(f"There is no folder {root}; name a folder of pictures in data.unlabelled.")
    files, copies = apart(path for path in data_files(root) if is_picture(path))
    read = [path for path in files if path.suffix.lower() not in NOT_READ]
    if not read:
        links = "".join(f" {one}" for one in links_not_followed(root))
        raise InputError(
            f"{root} holds no picture ({', '.join(FORMATS)}); name a folder of pictures in data.unlabelled.{links}"
        )
    return read, Counter({"copy_in_a_format_not_read": len(copies), "format_not_read": len(files) - len(read)})


def _not_read(root: Path) -> list[str]:
    """Sentences on what else lies in the folder: files that are not named as pictures, and labels."""
    said = []
    if other := [path.suffix or "no ending" for path in data_files(root) if not is_picture(path)]:
        kinds = ", ".join(name for name, _ in Counter(other).most_common(5))
        text = f"{root} also holds {len(other):,} files whose names are no picture's ({kinds}); they are not read."
        said.append(single_line(text))
    said += [
        f"{root} also holds labels ({name}), which are not read: the teacher labels its pictures."
        for name, known_layout in READERS.items()
        if known_layout.sniff(root)
    ]
    return said


def _dataset(name: str, root: Path | None, samples: tuple[Sample, ...], labelled: Dataset) -> Dataset:
    splits = in_columns({UNLABELLED: samples}, root)
    return Dataset(name, root, labelled.classes, splits, checked=True, render=labelled.render if root is None else None)


def _size(path: Path, root: Path) -> tuple[int, int] | None:
    """Of a picture; None where it cannot be read, which whoever looks at it will tell."""
    try:
        return image_size(path, root)
    except InputError:
        return None


def _of_sizes(dataset: Dataset, split: str, sizes: Container[tuple[int, int]]) -> list[Sample]:
    """The samples of a split that have one of some sizes: no others can show the same picture."""
    own = in_columns(dataset.splits, dataset.root)[split]
    return [own[place] for place, (wide, high) in enumerate(own.image_sizes.tolist()) if (wide, high) in sizes]


def _look(dataset: Dataset, sample: Sample, seen: Mapping[Path, Look | InputError]) -> Look | None:
    """What a labelled picture is; None where it cannot be read by now."""
    found = look_at(dataset.load(sample)) if sample.image is None else seen[sample.image]
    return found if isinstance(found, Look) else None


def _alike(pictures: Sequence[Look], others: Sequence[Look]) -> NDArray[np.bool_]:
    """Which pictures look like one of some others, as it is, mirrored or in quarter turns, bool [N]."""
    own, theirs = _thumbnails(pictures), _thumbnails(others).reshape(-1, THUMB, THUMB)
    turned = [np.rot90(side, turns, (1, 2)) for side in (theirs, theirs[:, :, ::-1]) for turns in range(4)]
    found = np.zeros(len(own), np.bool_)
    for first in range(0, len(own), AT_ONCE):
        part = own[first : first + AT_ONCE]
        for view in turned:
            seen = view.reshape(len(view), -1)
            squares = (part**2).mean(1)[:, None] + (seen**2).mean(1) - 2 * part @ seen.T / THUMB**2
            found[first : first + AT_ONCE] |= (squares < ALIKE**2).any(1) & (part.std(1) > PLAIN)
    return found


def _thumbnails(pictures: Sequence[Look]) -> NDArray[np.float64]:
    """Grey levels, float64 [N, THUMB^2]."""
    raw = b"".join(one.thumbnail for one in pictures)
    return np.frombuffer(raw, np.uint8).reshape(-1, THUMB**2).astype(np.float64)
