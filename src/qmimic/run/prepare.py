"""From a recipe to what its stages share: the checked dataset, the loaders, the detector's description."""

import platform
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.metadata import version

import numpy as np
import torch
from accelerate import Accelerator
from pydantic import ValidationError

from qmimic import processes
from qmimic.config import DataConfig, DetectorConfig, Recipe, explain
from qmimic.data import chosen
from qmimic.data.chosen import box_sizes, dataset_fingerprint, open_with_unlabelled, scaled_boxes
from qmimic.data.columns import Columns, in_columns
from qmimic.data.faults import limits
from qmimic.data.loader import Loader
from qmimic.data.pixel_cache import PixelCache
from qmimic.data.sample import Dataset
from qmimic.data.splits import TRAIN, VAL
from qmimic.data.unlabelled import Unlabelled
from qmimic.detectors.architectures import fitted_to, spec_for
from qmimic.detectors.crowds import without_place
from qmimic.detectors.fitted import FINE
from qmimic.detectors.spec import DetectorSpec
from qmimic.errors import InputError
from qmimic.run import device, threads
from qmimic.run.keys import cache_key, data_key
from qmimic.run.memory import keep_freed_memory
from qmimic.tables import TIMM
from qmimic.training.precision import bf16_by_default
from qmimic.training.trackers import require
from qmimic.zoo import TRAINED, located

EVALUATION_BATCH = 32


@dataclass(frozen=True)
class Prepared:
    """What the stages of a run share.

    Attributes:
        recipe: resolved.
        dataset: checked, without what it cannot use; its splits are TRAIN and VAL.
        train, val: loaders; train gives full shuffled batches, val every image once.
        detector: settings of every detector, with anchors.
        key: fingerprint of data, size and detector settings.
        accelerator: the processes of the run.
        device: of this process.
        remarks: sentences that a person has to read before any training.
        unlabelled: pictures for the teacher to label; None where the recipe names none.
    """

    recipe: Recipe
    dataset: Dataset
    train: Loader
    val: Loader
    detector: DetectorConfig
    key: str
    accelerator: Accelerator
    device: torch.device
    remarks: tuple[str, ...] = ()
    unlabelled: Unlabelled | None = None

    def spec(self, backbone: str) -> DetectorSpec:
        """The description of a student of this run."""
        return self._spec(self.detector, backbone)

    @property
    def teacher_spec(self) -> DetectorSpec:
        """The description of the teacher."""
        own = self.detector.model_copy(update={"architecture": self.recipe.teacher_architecture})
        return self._spec(own, self.recipe.teacher.backbone)

    def for_teacher(self) -> "Prepared":
        """The same with pictures as large as the teacher sees them (`teacher.scale`) and detectors that fit them."""
        scale = self.recipe.teacher.scale
        if scale == 1:
            return self
        height, width = self.recipe.data.size
        recipe = self.recipe.changed({"data.size": (scale * height, scale * width), "teacher.scale": 1})
        train, val, detector, key = _at_its_size(recipe, self.dataset)
        return replace(self, recipe=recipe, train=train, val=val, detector=detector, key=key)

    def _spec(self, detector: DetectorConfig, backbone: str) -> DetectorSpec:
        return spec_for(detector, backbone, self.dataset.classes, self.recipe.data.size, self.recipe.data.grey)

    def bf16(self, backbone: str) -> bool:
        """Whether a network of this width is computed in bf16."""
        if self.recipe.run.precision != "auto":
            return self.recipe.run.precision == "bf16"
        return bf16_by_default(backbone, self.device)


def prepare(recipe: Recipe) -> Prepared:
    """Read and check everything that can be wrong before any training.

    Raises:
        InputError: the dataset cannot be read or used, or a split is missing.
    """
    if any(name.startswith(TIMM) for name in (recipe.teacher.backbone, recipe.student.backbone)):
        import_module("timm")  # an extra: that it is missing must not wait for a stage
    for own in (recipe.teacher, recipe.student):
        located(own.weights or "", TRAINED)  # nor that the zoo does not have a name
    require(recipe.run.trackers)
    keep_freed_memory()
    accelerator, computes_on = device.choose(recipe.run)
    mine, about_threads = threads.choose(recipe.run, recipe.folder, here=device.processes_here())
    number = processes.least(mine, computes_on)  # others may see another load, or stand on a smaller machine
    torch.set_num_threads(number)
    if number < mine:
        about_threads = f"Each process computes on {number} thread{'s' * (number > 1)}, as the busiest of them has."
    for name in ("teacher", "quantized_teacher", "student"):
        if getattr(recipe, name).batch_size < accelerator.num_processes:
            raise InputError(
                f"{name}.batch_size is below the {accelerator.num_processes} processes, some would have no image; "
                "raise it or start fewer processes."
            )
    data = recipe.data
    dataset, unlabelled = open_with_unlabelled(data)
    _check_classes(dataset, data)
    train, val, detector, key = _at_its_size(recipe, dataset)
    said = remarks(recipe.detector, detector, data.size, in_columns(dataset.splits, dataset.root)[TRAIN])
    about_data = chosen.remarks(dataset, limits(recipe), data.allow_capped)
    about_others = unlabelled.remarks if unlabelled else ()
    told = (*([about_threads] if about_threads else []), *about_data, *about_others, *said)
    return Prepared(recipe, dataset, train, val, detector, key, accelerator, computes_on, told, unlabelled)


def _at_its_size(recipe: Recipe, dataset: Dataset) -> tuple[Loader, Loader, DetectorConfig, str]:
    """What of a run depends on the size of its pictures: the two loaders, the detectors' settings, the data's key.

    Raises:
        InputError: no box to learn from, or the architecture refuses the size.
    """
    data = recipe.data
    train = Loader(dataset, TRAIN, data.size, recipe.student.batch_size, pixel_cache(dataset, TRAIN, recipe))
    val = Loader(dataset, VAL, data.size, EVALUATION_BATCH, pixel_cache(dataset, VAL, recipe))
    sizes = box_sizes(in_columns(dataset.splits, dataset.root)[TRAIN], data.size)
    if not len(sizes):
        raise InputError(
            f"No image of the split {data.train!r} of {data.root} has a box to learn from; label some objects first."
        )
    detector = fitted_to(recipe.detector, recipe.teacher.detector, sizes, data.size)
    if len(dataset.classes) == 1:  # which has no rivals
        detector = detector.model_copy(update={"softmax_weight": 0.0})
    networks = {detector.architecture: recipe.student.backbone, recipe.teacher_architecture: recipe.teacher.backbone}
    for name, backbone in networks.items():  # what an architecture refuses must not wait for a stage
        own = detector.model_copy(update={"architecture": name})
        try:
            spec_for(own, backbone, dataset.classes, data.size, data.grey)
        except ValidationError as error:
            raise InputError(explain(error)) from error
    return train, val, detector, data_key(dataset_fingerprint(dataset), data, detector)


def remarks(given: DetectorConfig, fitted: DetectorConfig, size: tuple[int, int], train: Columns) -> tuple[str, ...]:
    """What was chosen by the boxes and what cannot be learnt, in sentences.

    Args:
        given: the recipe's settings.
        fitted: the same, with what the boxes decide.
        size: height and width of the network's input, pixels.
        train: the training pictures.
    """
    said = []
    levels = fitted.levels or ()
    if levels and given.levels is None:
        said.append(f"Levels of strides {', '.join(map(str, levels))}, by the sizes of the training boxes.")
    if fitted.output_stride == FINE != given.output_stride:
        said.append(f"An output stride of {FINE}, by the sizes of the training boxes.")
    if levels and (left := without_place(*scaled_boxes(train, size), size, levels)):
        said.append(
            f"At least {left:,} objects of the training pictures are learnt by no place of the levels: their "
            "neighbours in dense crowds need all that are near; add a finer level to detector.levels or raise "
            "data.size."
        )
    return tuple(said)


def pixel_cache(dataset: Dataset, split: str, recipe: Recipe) -> PixelCache | None:
    """Where a split's decoded images are kept in the run's folder; None where the recipe wants none kept."""
    data, samples = recipe.data, dataset.splits[split]
    if not data.cache_mib:
        return None
    only = replace(dataset, splits={split: samples})
    name = cache_key(dataset_fingerprint(only), data)
    return PixelCache(recipe.folder / "pixels" / f"{name}.bin", len(samples), data.size, data.cache_mib << 20)


def environment(prepared: Prepared) -> dict[str, str | int]:
    """What the run ran on, for its folder."""
    packages = ("qmimic", "torch", "torchvision", "accelerate", "numpy", "pillow", "safetensors")
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "device": str(prepared.device),
        "processes": prepared.accelerator.num_processes,
        "threads": torch.get_num_threads(),
        **{package: version(package) for package in packages},
    }


def _check_classes(dataset: Dataset, data: DataConfig) -> None:
    """Raises: InputError: the split to score has nothing to find, or a class that no training picture shows."""

    def seen(samples: Columns) -> set[int]:
        rows, store = samples.box_rows, samples.store
        return set(np.unique(store.labels[rows][~store.ignored[rows]]).tolist())

    splits = in_columns(dataset.splits, dataset.root)
    wanted = seen(splits[VAL])
    if not wanted:
        raise InputError(
            f"No image of the split {data.scored!r} of {data.root} has a box to find, so nothing can be scored; move "
            "some labelled images there, or name another split in data.val."
        )
    unknown = sorted(wanted - seen(splits[TRAIN]))
    if unknown:
        names = ", ".join(dataset.classes[label] for label in unknown)
        if data.label_share < 1:
            raise InputError(
                f"The split {data.scored!r} has the class {names}, which no image of {data.train!r} shows that counts "
                f"as labelled (data.label_share={data.label_share:g}); raise data.label_share."
            )
        raise InputError(
            f"The split {data.scored!r} has the class {names}, which no image of {data.train!r} shows; "
            "move some of its images to the training split or remove the class."
        )
