"""Pictures without labels, which a teacher is to label: read as strictly as those with labels; none is val's."""

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qmimic.config import DataConfig
from qmimic.data.accounts import Account, data_files
from qmimic.data.columns import Columns, in_columns
from qmimic.data.faults import kept
from qmimic.data.formats import READERS, looks
from qmimic.data.images import FORMATS, Look, image_size, look_at
from qmimic.data.labels import NOT_READ, apart, is_picture, make_sample
from qmimic.data.sample import Dataset, Sample
from qmimic.data.splits import TRAIN, UNLABELLED, VAL
from qmimic.errors import InputError, single_line


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
    if not root.is_dir():
        raise InputError(f"There is no folder {root}; name a folder of pictures in data.unlabelled.")
    files, copies = apart(path for path in data_files(root) if is_picture(path))
    left = Counter({"copy_in_a_format_not_read": len(copies)})
    left["format_not_read"] = sum(path.suffix.lower() in NOT_READ for path in files)
    files = [path for path in files if path.suffix.lower() not in NOT_READ]
    if not files:
        raise InputError(
            f"{root} holds no picture ({', '.join(FORMATS)}); name a folder of pictures in data.unlabelled."
        )
    sizes = {size for path in files if (size := _size(path, root))}
    others = {split: _of_sizes(labelled, split, sizes) for split in (TRAIN, VAL)}
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
    known = {split: {_number(labelled, sample, seen) for sample in own} for split, own in others.items()}
    spoilt = [path for path, one in found.items() if one.pixels in known[VAL]]
    if spoilt:
        raise InputError(
            f"{len(spoilt)} of {len(files)} pictures of {root} are in {config.scored} too, the first: "
            f"{spoilt[0].relative_to(root)}; scores on pictures that the student has seen say nothing. Take them out "
            "of data.unlabelled."
        )
    samples: dict[int, Sample] = {}
    for path, one in found.items():
        if one.pixels in known[TRAIN]:
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
    said += [
        f"{root} also holds labels ({name}), which are not read: the teacher labels its pictures."
        for name, known_layout in READERS.items()
        if known_layout.sniff(root)
    ]
    return Unlabelled(_dataset(root.name, root, tuple(samples.values()), labelled), tuple(said))


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


def _number(dataset: Dataset, sample: Sample, seen: Mapping[Path, Look | InputError]) -> int:
    """What tells a labelled picture from all that are not equal to it; 0 where it cannot be read by now."""
    found = look_at(dataset.load(sample)) if sample.image is None else seen[sample.image]
    return found.pixels if isinstance(found, Look) else 0
