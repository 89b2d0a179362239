"""The student's maps compared with its teacher's: one image's maps side by side, and matching by quantized value."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from qmimic.data.chosen import dataset_fingerprint
from qmimic.data.loader import Loader
from qmimic.data.sample import Dataset
from qmimic.data.splits import VAL
from qmimic.detectors.detector import Detector
from qmimic.detectors.files import read_tensors
from qmimic.distill.distiller import Sides
from qmimic.distill.matching import region_pairs
from qmimic.distill.mimic import Mimic
from qmimic.distill.teacher import DetectorTeacher, Teacher
from qmimic.errors import InputError
from qmimic.report.kept import FOLDER, kept_value
from qmimic.report.networks import BATCH, detector_of
from qmimic.run.folder import FinishedRun, StageResult
from qmimic.run.keys import matching_key
from qmimic.tables import DISTILLERS, MODES

CHANNELS = 3  # channels shown besides the mean of all; at least one for each of several levels
MOST_IMAGES = 500  # on which matching is counted
MOST_LEVELS = 8  # shown one by one; the rest are shown together
BINS = 10  # of the histogram over regions
WEIGHTS = "module.distiller."  # of the distiller, in a checkpoint
FILE = "matching.json"


@dataclass(frozen=True)
class MapRow:
    """One channel's maps, or the means over all channels: float32 [h, w], in units of s.

    Attributes:
        name: of the row.
        highest: end of the colour scale, which the row's maps share.
        maps: by the name of the column.
    """

    name: str
    highest: float
    maps: dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Level:
    """A level of the dictionary: a value that the teacher's quantized maps have on the regions of val.

    Attributes:
        name: of the level.
        entries: how many of the teacher's entries are on it.
        matched: share of them, 0..1, where the student's entry is on the same level.
    """

    name: str
    entries: int
    matched: float


@dataclass(frozen=True)
class Matching:
    """Matching by level, and by region.

    Attributes:
        levels: those on which the teacher has entries.
        regions: how many regions have 0 to 10 %, 10 to 20 %, ... of their entries within 0.3 of the teacher's, as
            in the paper's figure 5.
        images: number of val images counted.
    """

    levels: tuple[Level, ...]
    regions: tuple[int, ...]
    images: int


@dataclass(frozen=True)
class Maps:
    """The maps of one image, and the matching on val.

    Attributes:
        image_id: of the image.
        picture: the network's input.
        rows: of every map that is compared, the finest first: the mean of all channels, then the channels that are
            strongest in the quantized teacher.
        stride: s, in the map's own units (mean over channels if each has its own).
        matching: None if the student has no adaptor.
        absent: why the student's map is not shown; empty if it is.
    """

    image_id: str
    picture: Image.Image
    rows: tuple[MapRow, ...]
    stride: float
    matching: Matching | None
    absent: str


@torch.no_grad()
def feature_maps(run: FinishedRun, dataset: Dataset, say: Callable[[str], None]) -> Maps:
    """The maps of the first val image with a labelled box, and matching by level.

    Raises:
        InputError: a network or an image cannot be read, there is no quantized teacher, or it saw larger pictures.
    """
    if run.recipe.teacher.scale != 1:
        raise InputError(
            "The teacher saw larger pictures than the student (teacher.scale): their maps are not compared."
        )
    by_name = {result.name: result for result in run.results}
    if not {"teacher", "quantized_teacher", "student"} <= set(by_name):
        raise InputError("The run does not have a teacher, a quantized teacher and a student to compare.")
    teacher, quantized, student = (detector_of(run, by_name[n]) for n in ("teacher", "quantized_teacher", "student"))
    quantizer = quantized.quantizer
    if quantizer is None:
        raise InputError("The quantized teacher has no quantizer; run the recipe again.")
    samples = dataset.splits[VAL]
    place = next((place for place, sample in enumerate(samples) if len(sample.boxes)), 0)
    sample = samples[place]
    pixels, _ = dataset.fitted(sample, student.spec.size)
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    stride = quantizer.stride.view(-1, 1, 1)
    matching, absent = None, ""
    seen, seen_quantized = teacher.raw_features(images).maps, quantized.raw_features(images).maps
    maps = {
        of_teacher: {
            "teacher": seen[place][0] / stride,
            "quantized teacher": quantizer(seen_quantized[place])[0] / stride,
        }
        for place, of_teacher in enumerate(teacher.strides)
    }
    try:
        distiller = _trained_distiller(run, by_name["student"], student, teacher, quantized)
    except InputError as error:
        absent = str(error)
    else:
        own = student.raw_features(images).maps
        maps = {student.strides[ours]: maps[student.strides[ours]] for ours, _ in distiller.pairs}
        for place, (ours, _) in enumerate(distiller.pairs):
            adapted = distiller.adapt(own[ours], place)
            maps[student.strides[ours]] |= {
                "student, r(f)": adapted[0] / stride,
                "student, Q(r(f))": quantizer(adapted)[0] / stride,
            }
        part = replace(dataset, splits={VAL: samples[:MOST_IMAGES]})
        master = quantized if MODES[run.recipe.mimic.mode].teacher else teacher

        def compared() -> Matching:
            say("The report compares the student's map with its teacher's.")
            loader = Loader(part, VAL, student.spec.size, BATCH)
            return _compared(student, DetectorTeacher(master, bf16=False), distiller, loader)

        key = matching_key(by_name["student"].key, dataset_fingerprint(part))
        matching = kept_value(run.folder / FOLDER / FILE, key, Matching, compared)
    picture = Image.fromarray(pixels)
    return Maps(sample.image_id, picture, _rows(maps), float(stride.mean()), matching, absent)


def _rows(maps: dict[int, dict[str, torch.Tensor]]) -> tuple[MapRow, ...]:
    """The rows of maps [C, h, w] by the name of their column, by stride: see `Maps.rows`."""
    rows = []
    for stride, level in maps.items():
        where = f", stride {stride}" if len(maps) > 1 else ""
        means = level["quantized teacher"].mean((1, 2))
        strongest = means.argsort(descending=True)[: max(1, CHANNELS // len(maps))].tolist()
        rows.append(_row(f"mean of all channels{where}", {name: own.mean(0) for name, own in level.items()}))
        rows += [_row(f"channel {one}{where}", {name: own[one] for name, own in level.items()}) for one in strongest]
    return tuple(rows)


def _row(name: str, maps: dict[str, torch.Tensor]) -> MapRow:
    plain = {column: own.float().numpy() for column, own in maps.items()}
    # The quantized teacher's map is the target, so its range is the scale.
    return MapRow(name, max(1e-6, float(plain["quantized teacher"].max())), plain)


def _trained_distiller(
    run: FinishedRun, result: StageResult, student: Detector, teacher: Detector, quantized: Detector
) -> Mimic:
    """The distiller that taught the student, with its adaptor r, from the last checkpoint of the training.

    Raises:
        InputError: the student has no distiller, or its checkpoint is gone.
    """
    config = run.recipe.mimic
    if config.mode == "none":
        raise InputError("The student was trained without a teacher, so no adaptor leads to the teacher's channels.")
    folder = run.stage(result) / "checkpoints"
    files = sorted(folder.glob("step-*.safetensors"))
    if not files:
        raise InputError(
            "The student's map cannot be shown in the teacher's channels: the adaptor is in the checkpoints of its "
            f"stage, but there are none in {folder}."
        )
    file = read_tensors(files[-1])
    if file.header.get("key") != result.key:
        raise InputError(f"{files[-1]} is not a checkpoint of this student; run the recipe again.")
    assert quantized.quantizer is not None
    ones = tuple(torch.ones(()) for _ in teacher.strides)
    sides = Sides.between(student, DetectorTeacher(teacher, bf16=False), ones, quantized.quantizer, seed=0)
    pair = DISTILLERS[config.distiller](config, sides)
    if not isinstance(pair, Mimic):
        raise InputError(f"The report compares maps only for mimic.distiller=mimic; this run has {config.distiller}.")
    state = {name.removeprefix(WEIGHTS): one for name, one in file.tensors.items() if name.startswith(WEIGHTS)}
    try:
        pair.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"{files[-1]} lacks the student's adaptor; run the recipe again.") from error
    return pair.eval()


def _compared(student: Detector, teacher: Teacher, distiller: Mimic, loader: Loader) -> Matching:
    entries, matched = np.zeros(MOST_LEVELS + 1, np.int64), np.zeros(MOST_LEVELS + 1, np.int64)
    regions = np.zeros(BINS, np.int64)
    for pair in region_pairs(student, teacher, distiller, loader):
        seen, own = pair.teacher_levels[pair.valid].flatten(), pair.student_levels[pair.valid].flatten()
        level = seen.clamp(max=MOST_LEVELS).long()
        entries += np.bincount(level.numpy(), minlength=MOST_LEVELS + 1)
        matched += np.bincount(level[seen == own].numpy(), minlength=MOST_LEVELS + 1)
        regions += np.histogram(pair.near_shares().numpy(), BINS, (0, 1))[0]
    names = [*map(str, range(MOST_LEVELS)), f"{MOST_LEVELS}+"]
    rows = zip(names, entries.tolist(), matched.tolist(), strict=True)
    levels = tuple(Level(name, count, equal / count) for name, count, equal in rows if count)
    return Matching(levels, tuple(regions.tolist()), len(loader.samples))
