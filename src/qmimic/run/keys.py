"""Every fingerprint that names a result: of stages, banks, caches, integers and the jobs of studies.

A key holds all that can change what it names, and nothing else. Equal keys share a result; a changed setting makes new
ones of the stages that it reaches and leaves the others. What a setting names on disk (weights, pictures) counts by its
content or its time of change, never by its path.
"""

import hashlib
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from pydantic import BaseModel

from qmimic.config import (
    DataConfig,
    DetectorConfig,
    FineTuningConfig,
    MimicConfig,
    Recipe,
    Section,
    TeacherFileConfig,
    fingerprint,
)
from qmimic.config.recipe import GONE
from qmimic.data.faults import limits
from qmimic.data.letterbox import PIXELS
from qmimic.detectors.fitted import COARSE
from qmimic.detectors.pretrained import PRETRAINED
from qmimic.distill.inner_maps import files_beside
from qmimic.errors import InputError
from qmimic.extras import version_of
from qmimic.files import MissingError, open_file
from qmimic.tables import ARCHITECTURES
from qmimic.zoo import DEPLOYED, TRAINED, located

VERSION = 2  # raised when the same recipe would give other weights
TAUGHT_VERSION = 1  # the same for students that are taught
# And where a share is held, regions are balanced, channels go several at a time, or LASSO refits. No id of a study's
# job counts these: unfinished tables go on.
DOSE_VERSION, BALANCED_VERSION, MULTIPLE_VERSION, LASSO_VERSION = 2, 2, 2, 2
OF_DISTILLERS = {"pearson": 2, "outputs": 2}  # and where one of these compares
FILE_VERSION = 2  # for teachers that are a file
TAYLOR_VERSION = 1  # and for teachers pruned by Taylor expansion
INT8_VERSION = 1  # when the same detector would get other grids
OF_UNLABELLED = ("unlabelled", "unlabelled_share", "unlabelled_doubt")  # that students alone see
# Settings since VERSION, which count only where they are set.
LATER = {
    *(f"teacher.{name}" for name in ("frozen_stages", "frozen_norm", "detector", "scale")),
    *(f"teacher.{name}" for name in ("kind", *TeacherFileConfig.model_fields)),
    *(f"detector.{name}" for name in ("anchor_cells", "anchor_ratios", "levels")),
    *(f"data.{name}" for name in ("label_share", *OF_UNLABELLED)),
    *("data.grey", "data.allow_capped", "mimic.distiller", "mimic.settings", "mimic.sampling"),
    *("mimic.region_size", "pruning.multiple"),
    *("augment.transpose", "augment.mosaic", "teacher.closing_steps", "student.closing_steps"),
}
LABELS_VERSION = 3  # when a teacher would label the same pictures otherwise
BANK_VERSION = 5  # when a bank's records change
COSTS_VERSION = 1  # when the same candidate of a search would cost something else
REPORT_VERSION = 3  # when a report would show something else of the same networks
ENGINE_PACKAGES = ("qmimic", "onnxruntime", "openvino", "executorch", "ai-edge-litert", "tflite-micro", "ncnn")


def weights_key(path: str | None, kind: str = TRAINED) -> str | None:
    """A fingerprint of a file of weights; None where no file is named, and timm's own by the backbone's name alone.

    Args:
        path: of the file, or a student of the zoo.
        kind: which of the zoo's files is meant.

    Raises:
        InputError: the file cannot be read.
    """
    if path is None or path == PRETRAINED:
        return path
    try:
        with open_file(located(path, kind)) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except MissingError as error:
        raise InputError(f"Cannot read the weights {path}: there is no such file; name a file of weights.") from error


def data_key(dataset: str, data: DataConfig, detector: DetectorConfig) -> str:
    """What all stages of a run share.

    Args:
        dataset: fingerprint of labels and pictures, see `dataset_fingerprint`.
        data: size, and whether bad boxes were left out.
        detector: settings of every detector, with anchors.
    """
    own = {name: value for name, value in _plain(data).items() if name in ("size", "drop_bad_boxes", "grey")}
    return fingerprint(dataset, own, PIXELS, _plain(detector))


def cache_key(dataset: str, data: DataConfig) -> str:
    """A split's decoded pixels. Args: as `data_key`, the dataset of this split alone."""
    return fingerprint(PIXELS, dataset, data.size, data.cache_mib, version("pillow"))


def teacher_key(recipe: Recipe, data: str, bf16: bool) -> str:
    """The full-precision teacher. Args: as `student_key`."""
    own = _schedule(recipe.teacher, "min_map"), _plain(recipe.augment), recipe.seed, bf16
    return fingerprint(VERSION, data, *own, *_of_its_architecture(recipe))


def opened_key(recipe: Recipe, data: str) -> str:
    """A teacher that is a file, with its quantizer. Args: as `student_key`."""
    return fingerprint(VERSION, FILE_VERSION, data, _schedule(recipe.teacher, "min_map"), recipe.quantizer)


def quantized_key(recipe: Recipe, teacher: str) -> str:
    """The quantized teacher, from the key of the full-precision one."""
    return fingerprint(
        VERSION, teacher, _schedule(recipe.quantized_teacher), recipe.quantizer, _plain(recipe.augment), recipe.seed
    )


def pruned_key(recipe: Recipe, teacher: str) -> str:
    """The pruned teacher before it is trained on, from the key of the full-precision one."""
    student = recipe.student
    several = recipe.pruning.method == "taylor" and recipe.pruning.multiple > 1
    since = [
        *([f"multiples {MULTIPLE_VERSION}"] if several else []),
        *([f"lasso {LASSO_VERSION}"] if recipe.pruning.method == "lasso" else []),
    ]
    return fingerprint(VERSION, teacher, student.backbone, student.batch_size, recipe.seed, *_pruning(recipe), *since)


@dataclass(frozen=True)
class Parents:
    """Keys of the stages that a student depends on.

    Attributes:
        taught_by: whom it imitates.
        grid: whose stride s quantizes its map or the maps of the mimic loss.
        start: the pruned teacher that it begins as.
    """

    taught_by: str | None = None
    grid: str | None = None
    start: str | None = None


def student_key(recipe: Recipe, data: str, bf16: bool, parents: Parents) -> str:
    """A student.

    Args:
        recipe: of the arm.
        data: see `data_key`.
        bf16: whether this network is computed in bf16.
        parents: the stages before it.
    """
    return fingerprint(
        VERSION,
        data,
        _schedule(recipe.student),
        _plain(recipe.augment),
        recipe.seed,
        bf16,
        [*_distillation(recipe.mimic), *_since(recipe.mimic)] if parents.taught_by else None,
        [parents.taught_by, parents.grid, parents.start],
    )


def labels_key(recipe: Recipe, data: str, teacher: str, pictures: str) -> str:
    """A teacher's labels of pictures.

    Args:
        recipe: of the run.
        data: see `data_key`; thresholds are chosen on its val.
        teacher: key of the teacher.
        pictures: fingerprint of the unlabelled pictures.
    """
    return fingerprint(LABELS_VERSION, data, teacher, pictures, recipe.data.unlabelled_doubt)


def mixed_key(recipe: Recipe, data: str, labels: str) -> str:
    """What a student sees that also learns from a teacher's labels, in place of `data_key`."""
    return fingerprint(data, labels, recipe.data.unlabelled_share)


def found_key(labels: str, device: torch.device) -> str:
    """What a teacher on a device finds in pictures, kept while it labels them; `labels` as in `mixed_key`."""
    return fingerprint(labels, _arithmetic(device))


def _arithmetic(device: torch.device) -> list[object]:
    """What convolutions may round by: threads, torch's version, and another device than the CPU."""
    return [torch.get_num_threads(), torch.__version__, *([device.type] if device.type != "cpu" else [])]


def int8_key(recipe: Recipe, data: str, weights: list[float]) -> str:
    """Training on integer grids; what is allowed to be lost decides whether there is any, not how it goes.

    Args:
        recipe: of the run.
        data: see `data_key`.
        weights: what tells the detector from others.
    """
    return fingerprint(
        INT8_VERSION, data, _schedule(recipe.int8, "max_loss"), _plain(recipe.augment), recipe.seed, weights
    )


def bank_key(recipe: Recipe, data: str, teacher: str, content: object, processes: int, device: torch.device) -> str:
    """A teacher bank.

    Args:
        recipe: of the arm.
        data: see `data_key`.
        teacher: key of the teacher's stage.
        content: plain values that say what a record holds.
        processes: that train together.
        device: where the teacher computes.
    """
    batch = [recipe.student.batch_size, processes]  # for others, convolutions may round otherwise too
    return fingerprint(BANK_VERSION, teacher, data, content, batch, _arithmetic(device))


def costs_key(detector: DetectorConfig, classes: int) -> str:
    """What networks with these settings cost as files, on this machine, in the engines that are installed."""
    machine = platform.node(), platform.processor(), os.cpu_count()
    return fingerprint(
        COSTS_VERSION,
        _plain(detector, "softmax_weight"),  # a loss alone
        classes,
        machine,
        [version_of(name) for name in ENGINE_PACKAGES],
    )


def network_key(spec: BaseModel, quantizer: BaseModel | None) -> str:
    """A network whatever its weights are; all of one description cost the same."""
    return fingerprint(spec, quantizer)


def timing_key(cpu: str, networks: Sequence[str], files: Sequence[tuple[str, str]]) -> str:
    """A report's times, of networks by their stages' keys and of deployed files by title and checksum."""
    return fingerprint(REPORT_VERSION, cpu, [version(name) for name in ("qmimic", "onnxruntime")], networks, files)


def detections_key(network: str, dataset: str) -> str:
    """A report's detections of a network (key of its stage, or checksum of its file) on a dataset."""
    return fingerprint(REPORT_VERSION, network, dataset)


def matching_key(student: str, dataset: str) -> str:
    """A report's matching of a student's map, by its stage's key, on pictures of a dataset."""
    return fingerprint(REPORT_VERSION, student, dataset)


def check_key(dataset: str, recipe: Recipe) -> str:
    """What a report says is wrong with a dataset at a recipe's training size, and with its detectors' caps."""
    return fingerprint(REPORT_VERSION, dataset, recipe.data.size, limits(recipe), recipe.data.allow_capped)


def job_keys(recipe: Recipe) -> dict[str, str]:
    """Ids of a study's jobs by kind, from one run's recipe alone: the data are not read.

    The kinds are teacher, quantized and student; what the student does not need is left out.
    """
    detector = _plain(recipe.detector)
    if recipe.detector.output_stride == COARSE:  # an open one may come to be another
        detector["chosen"] = False
    # Teachers see labelled pictures alone: arms with others share them.
    unlabelled = [_plain(recipe.data)] if recipe.data.unlabelled is not None else []
    run = (
        VERSION,
        recipe.seed,
        _plain(recipe.data, *OF_UNLABELLED),
        detector,
        _plain(recipe.augment),
        recipe.run.precision,
    )
    if not recipe.needs_teachers:
        return {"student": fingerprint("student", *run, _job_schedule(recipe.student))}
    if not recipe.trains_teacher:
        opened = [_job_schedule(recipe.teacher, "min_map"), recipe.quantizer, _distillation(recipe.mimic)]
        return {"student": fingerprint("student", *run, _job_schedule(recipe.student), *opened, *unlabelled)}
    own = _job_schedule(recipe.teacher, "min_map"), *_of_its_architecture(recipe)
    teacher = fingerprint("teacher", *run, *own)
    quantized = fingerprint("quantized", teacher, _job_schedule(recipe.quantized_teacher), recipe.quantizer)
    pruning = _pruning(recipe) if recipe.pruning.method != "none" else []
    taught = _distillation(recipe.mimic) if recipe.mimic.mode != "none" else []
    student = fingerprint("student", quantized, _job_schedule(recipe.student), taught, *pruning, *unlabelled)
    # A student without a grid has the id that it had when every teacher was quantized, so that tables go on.
    return {"teacher": teacher, **({"quantized": quantized} if recipe.needs_grid else {}), "student": student}


def _schedule(config: FineTuningConfig, *left_out: str) -> Mapping[str, object]:
    """A network's settings, with the content of its weights in their path's place."""
    plain = _plain(config, *left_out)
    if "file" in plain:
        plain["file"] = _file_key(plain["file"])
    return {**plain, "weights": weights_key(plain["weights"])} if "weights" in plain else plain


def _file_key(path: str | None) -> str | None:
    """A fingerprint of a teacher's file, and of the files beside it in which its weights lie."""
    own = weights_key(path, DEPLOYED)
    if path is None:
        return own
    beside = [weights_key(str(one)) for one in files_beside(located(path, DEPLOYED))]
    return fingerprint(own, *beside) if beside else own


def _job_schedule(config: FineTuningConfig, *left_out: str) -> Mapping[str, object]:
    """The same for a job: weights that cannot be read fail this job when it runs, not the whole study."""
    try:
        return _schedule(config, *left_out)
    except InputError:
        return _plain(config, *left_out)


def _plain(config: Section, *left_out: str) -> dict[str, Any]:
    """The settings of a section, such that results keep their keys when settings come and go.

    What is gone counts as the value that holds now, and what came later only where it is set.

    Args:
        config: any section.
        left_out: names that count for nothing.
    """
    section = next(name for name, field in Recipe.model_fields.items() if field.annotation is type(config))
    fixed = {key.rpartition(".")[2]: value for key, value in GONE.items() if key.startswith(f"{section}.")}
    plain = {**fixed, **config.model_dump(mode="json", exclude=set(left_out))}
    if isinstance(config, DetectorConfig) and config.output_stride is None:
        plain["output_stride"] = COARSE  # what it was before it could be open
    own = type(config).model_fields
    inert = {n for n in plain if f"{section}.{n}" in LATER and getattr(config, n) == own[n].default}
    if isinstance(config, DetectorConfig) and not _softmax_of(config, config.architecture):
        inert.add("softmax_weight")
    return {name: value for name, value in plain.items() if name not in inert}


def _softmax_of(config: DetectorConfig, architecture: str) -> list[float]:
    """The weight of a loss that came later, where there was none: with 0, and without it, nothing has changed."""
    reads = "softmax_weight" in ARCHITECTURES[architecture].reads
    return [config.softmax_weight] if reads and config.softmax_weight else []


def _of_its_architecture(recipe: Recipe) -> list[float]:
    """What decides a teacher of another architecture, and is no setting of the student's."""
    detector = recipe.detector
    return [] if _softmax_of(detector, detector.architecture) else _softmax_of(detector, recipe.teacher_architecture)


def _pruning(recipe: Recipe) -> list[object]:
    """What a pruned teacher depends on besides its cost."""
    own = _plain(recipe.pruning)
    if recipe.pruning.method == "taylor":
        return [own, TAYLOR_VERSION]
    # LASSO has no rate; this was the default when the ids of jobs began to count it.
    return [{**own, "learning_rate": 3e-4}]


def _since(config: MimicConfig) -> list[object]:
    """What makes a student another one than it was by the same settings before."""
    return [
        *([f"dose {DOSE_VERSION}"] if config.holds_share else []),
        *([f"balanced {BALANCED_VERSION}"] if config.sampling == "balanced" else []),
        *([f"{config.distiller} {OF_DISTILLERS[config.distiller]}"] if config.distiller in OF_DISTILLERS else []),
    ]


def _distillation(config: MimicConfig) -> list[object]:
    """What a distillation loss depends on: a share where it is held, asked for or by default."""
    held = config.model_copy(update={"weight": "auto"}) if config.holds_share else config
    return [TAUGHT_VERSION, _plain(held, *(() if config.holds_share else ("share",)))]
