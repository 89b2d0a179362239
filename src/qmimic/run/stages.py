"""The stages of a run: teacher, quantized teacher, pruned teacher, students."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from qmimic import processes
from qmimic.arms import QUANTIZED_TEACHER, TEACHER, pruned_stage
from qmimic.compress.cost import equal_share
from qmimic.compress.lasso import prune_by_lasso
from qmimic.compress.taylor import prune_by_taylor
from qmimic.config import Recipe, TeacherConfig
from qmimic.detectors.build import build, mac_count
from qmimic.detectors.channels import channel_groups
from qmimic.detectors.detector import Detector
from qmimic.detectors.evaluation import channel_rms
from qmimic.detectors.files import load_detector
from qmimic.detectors.pretrained import load_backbone
from qmimic.detectors.quantize import Quantizer, absolute_stride
from qmimic.detectors.spec import DetectorSpec
from qmimic.distill.matching import matching
from qmimic.distill.mimic import Mimic
from qmimic.distill.scales import of_scale
from qmimic.distill.teacher import DetectorTeacher, Teacher
from qmimic.errors import InputError
from qmimic.run.folder import stage_folder
from qmimic.run.keys import Parents, pruned_key, quantized_key, student_key, teacher_key
from qmimic.run.labelling import label
from qmimic.run.opened_teacher import OpenedTeacher, open_teacher, remarks_on_maps, remarks_on_regions
from qmimic.run.prepare import Prepared
from qmimic.run.stage import Stage, once, run_stage, write_detector
from qmimic.run.teacher_labels import TeacherLabels
from qmimic.run.teaching import Lesson, taught
from qmimic.run.validation import Validation
from qmimic.tables import MODES
from qmimic.training.loop import Objective, Watcher, step_generators
from qmimic.training.step import DetectionObjective, DistillationObjective


@dataclass(frozen=True)
class Teachers:
    """The teachers of a run.

    Attributes:
        full_precision: as trained.
        quantized: fine-tuned from it on its quantized map; None where no student depends on the map's grid.
    """

    full_precision: Stage
    quantized: Stage | None

    def lesson(self, prepared: Prepared) -> Lesson:
        """What a student of a recipe is taught by, and on which grid."""
        recipe, quantized = prepared.recipe, self.quantized
        assert quantized, "a lesson has a grid"
        master = quantized if MODES[recipe.mimic.mode].teacher else self.full_precision

        def teacher() -> Teacher:
            detector, _ = load_detector(master.file)
            detector.to(prepared.device)
            return of_scale(DetectorTeacher(detector, prepared.bf16(recipe.teacher.backbone)), recipe.teacher.scale)

        def quantizer() -> Quantizer:
            detector, _ = load_detector(quantized.file)
            assert detector.quantizer is not None, "a quantized teacher has a quantizer"
            return detector.quantizer

        return Lesson(master.result.key, quantized.result.key, teacher, quantizer)


def train_teacher(prepared: Prepared, watcher: Watcher) -> Stage:
    """Train the full-precision teacher; refuse it if it is too weak to teach.

    Raises:
        InputError: its mAP on val is below `teacher.min_map`, or training failed.
    """
    prepared = prepared.for_teacher()
    recipe = prepared.recipe
    config = recipe.teacher
    key = teacher_key(recipe, prepared.key, prepared.bf16(config.backbone))

    def objective() -> DetectionObjective:
        detector = _untrained_teacher(prepared)
        _freeze(detector, config)
        return DetectionObjective(detector, recipe.augment, config.closing_from)

    stage = run_stage(prepared, TEACHER, key, config, config.backbone, objective, watcher)
    map50 = stage.result.map50
    watcher.say(f"The teacher ({config.backbone}) reaches {100 * map50:.1f} mAP@0.5 on {recipe.data.scored}.")
    if map50 < config.min_map:
        raise InputError(
            f"The teacher reaches only {100 * map50:.1f} mAP@0.5 on {recipe.data.scored}, below teacher.min_map="
            f"{config.min_map}, and a weak teacher makes its students worse; run `qmimic data check`, raise "
            "teacher.steps or data.size, or lower teacher.min_map."
        )
    return stage


def quantize_teacher(prepared: Prepared, teacher: Stage, watcher: Watcher) -> Stage:
    """Quantize the teacher's map and go on training it, so that its heads work on quantized maps."""
    prepared = prepared.for_teacher()
    recipe = prepared.recipe
    config = recipe.quantized_teacher
    backbone = recipe.teacher.backbone
    key = quantized_key(recipe, teacher.result.key)

    def quantized() -> Detector:
        detector, _ = load_detector(teacher.file)
        detector.to(prepared.device)
        _require_one_level(recipe, detector)
        rms = channel_rms(detector, prepared.train.with_batch_size(config.batch_size))
        detector.quantizer = Quantizer(recipe.quantizer, absolute_stride(recipe.quantizer, rms)).to(rms.device)
        return detector.to(prepared.device)

    before: list[float] = []

    def objective() -> DetectionObjective:
        detector = quantized()
        before.append(Validation(prepared)(detector.eval()))
        _freeze(detector, recipe.teacher)
        return DetectionObjective(detector, recipe.augment)

    def extra(*_: object) -> dict[str, Any]:
        return {"map50_before": before[0]}

    stage = run_stage(prepared, QUANTIZED_TEACHER, key, config.schedule, backbone, objective, watcher, extra)
    result = stage.result
    watcher.say(
        f"Quantized, the teacher has {100 * (result.map50_before or 0):.1f} mAP@0.5 before fine-tuning "
        f"and {100 * result.map50:.1f} after it (full precision: {100 * teacher.result.map50:.1f})."
    )
    return stage


def _freeze(detector: Detector, config: TeacherConfig) -> None:
    """Keep what the recipe keeps of a teacher's backbone."""
    if config.frozen_stages or config.frozen_norm:
        detector.backbone.freeze(config.frozen_stages, config.frozen_norm)


def macs_to_prune_to(prepared: Prepared) -> int:
    """Multiply-accumulates of the recipe's student.

    Raises:
        InputError: the teacher is of another architecture, its channels cannot be pruned, or it costs no more.
    """
    kind, own = prepared.recipe.teacher_architecture, prepared.recipe.detector.architecture
    if kind != own:
        raise InputError(
            f"A student that is cut out of its teacher has its architecture: here the teacher is {kind} and the "
            f"student {own}; leave out teacher.detector, or do not prune."
        )
    teacher, student = (prepared.recipe.teacher.backbone, prepared.recipe.student.backbone)
    whole, macs = build(prepared.teacher_spec), mac_count(build(prepared.spec(student)))
    channel_groups(whole)
    if macs >= mac_count(whole):
        raise InputError(
            f"The teacher {teacher} costs no more than {student}, so there is nothing to prune; "
            "choose a wider teacher or a narrower student."
        )
    return macs


def prune_teacher(prepared: Prepared, teacher: Stage, watcher: Watcher) -> Stage:
    """Prune the full-precision teacher to the cost of the recipe's student; it is not yet trained on.

    Raises:
        InputError: as `macs_to_prune_to`.
    """
    recipe = prepared.recipe
    config = recipe.pruning
    key = pruned_key(recipe, teacher.result.key)
    name = pruned_stage(config.method)
    macs = macs_to_prune_to(prepared)

    def pruned() -> Detector:
        detector, _ = load_detector(teacher.file)
        detector.to(prepared.device)
        loader = prepared.train.with_batch_size(recipe.student.batch_size)
        if config.method == "lasso":
            left = equal_share(detector, macs)
            watcher.start(name, len(left), 0)
            return prune_by_lasso(detector, left, config, loader.once(), recipe.seed, lambda n: watcher.step(n, 0, 0.0))
        steps = config.rounds * config.steps
        watcher.start(name, steps, 0)
        return prune_by_taylor(
            DetectionObjective(detector, recipe.augment),
            macs,
            config,
            loader.steps(recipe.seed, 0, steps),
            lambda step: step_generators(recipe.seed, step, prepared.device),
            lambda step, loss: watcher.step(step, loader.batch_size, loss),
        )

    folder = stage_folder(recipe.folder, name, key)

    def work() -> None:
        if prepared.accelerator.is_main_process:
            with processes.apart():
                detector = pruned()
                write_detector(prepared, name, key, detector, Validation(prepared).scores(detector), folder, {})

    stage = once(prepared, folder, watcher, work)
    watcher.say(
        f"Pruned by {config.method} to {stage.result.macs / 1e6:.1f} MMACs, the teacher has "
        f"{100 * stage.result.map50:.1f} mAP@0.5 before further training."
    )
    return stage


def teachers_of(prepared: Prepared, on_grid: bool, watcher: Watcher) -> Teachers | OpenedTeacher:
    """The teachers of a recipe: trained, or opened where the recipe names a file.

    Args:
        prepared: the run.
        on_grid: whether a student depends on the grid of a quantized map; if none does, no teacher is quantized.
        watcher: told of progress.

    Raises:
        InputError: the teacher is too weak, its training failed, or its file does not fit.
    """
    kind = prepared.recipe.teacher.kind
    if not prepared.recipe.trains_teacher:
        seen = prepared.for_teacher()
        opened = open_teacher(seen)
        watcher.say(f"The teacher is {prepared.recipe.teacher.file}, as it is (teacher.kind={kind}).")
        for remark in (*remarks_on_maps(seen, opened), *remarks_on_regions(seen, opened)):
            watcher.say(remark)
        return opened
    teacher = train_teacher(prepared, watcher)
    return Teachers(teacher, quantize_teacher(prepared, teacher, watcher) if on_grid else None)


def labels_of(prepared: Prepared, teachers: Teachers | OpenedTeacher, watcher: Watcher) -> TeacherLabels | None:
    """What the teacher says of the recipe's unlabelled pictures; None where it names none. Raises: as `label`."""
    if prepared.recipe.data.unlabelled is None:
        return None
    if isinstance(teachers, OpenedTeacher):
        return label(prepared, teachers.teacher, teachers.key, watcher)
    detector, _ = load_detector(teachers.full_precision.file)
    detector.to(prepared.device)
    return label(prepared, DetectorTeacher(detector, bf16=False), teachers.full_precision.result.key, watcher)


def train_student(
    prepared: Prepared,
    name: str,
    teachers: Teachers | OpenedTeacher | None,
    watcher: Watcher,
    labels: TeacherLabels | None = None,
) -> Stage:
    """Train one arm. All arms share order, views and schedule, and initial weights where they start afresh.

    Args:
        prepared: the run, with the arm's recipe.
        name: of the arm.
        teachers: `mimic.mode` says which of the two is imitated; None where `Recipe.needs_teachers` is false.
        watcher: told of every step.
        labels: the teacher's, of pictures that the student learns from too where the arm's recipe names them.
    """
    recipe = prepared.recipe
    config, mimic = recipe.student, recipe.mimic
    imitates = mimic.mode != "none"
    # Whoever is taught, or sees its map quantized, depends on the stride s.
    lesson = teachers.lesson(prepared) if teachers and (imitates or config.quantize_map) else None
    start = None
    if isinstance(teachers, Teachers) and recipe.pruning.method != "none":
        start = prune_teacher(prepared, teachers.full_precision, watcher)
    parents = Parents(
        taught_by=lesson.key if lesson and imitates else None,
        grid=lesson.grid_key if lesson else None,
        start=start.result.key if start else None,
    )
    if lesson and imitates:  # the student's views are made of what the teacher sees
        prepared = replace(prepared, train=prepared.for_teacher().train)
    # What was cut out of the teacher was so by the labelled pictures.
    if labels and recipe.data.unlabelled is not None:
        prepared = labels.joined(prepared)
    key = student_key(recipe, prepared.key, prepared.bf16(config.backbone), parents)

    def objective() -> Objective:
        student = _untrained(prepared, start)
        if lesson and config.quantize_map:
            student.quantizer = lesson.quantizer()
        if not lesson or not imitates:
            return DetectionObjective(student, recipe.augment, config.closing_from)
        return taught(prepared, student, lesson, watcher)

    def extra(trained: Objective, kept: Detector) -> dict[str, Any]:
        return {"mode": mimic.mode, "distiller": mimic.distiller, **_lesson_learnt(trained, kept, prepared)}

    return run_stage(prepared, name, key, config, config.backbone, objective, watcher, extra)


def _lesson_learnt(trained: Objective, kept: Detector, prepared: Prepared) -> dict[str, float]:
    """How strongly a student was taught, and how far its map matches the teacher's on val."""
    if not isinstance(trained, DistillationObjective):
        return {}
    measured = trained.dose.overall()
    if isinstance(trained.distiller, Mimic) and trained.scale == 1:
        counts = matching(kept, trained.teacher.exact(), trained.distiller, prepared.val)
        measured |= {
            "matching": counts.ratio,
            "matching_nonzero": counts.nonzero_ratio,
            "matching_near": counts.near_ratio,
        }
    return measured


def require_networks(prepared: Prepared, students: Iterable[Recipe]) -> None:
    """Check that all networks of a run can be made and started, before any is trained.

    Args:
        prepared: the run.
        students: recipes of its arms.

    Raises:
        InputError: a network cannot be built, its weights do not fit it, or its map cannot be quantized as asked.
    """
    students = list(students)
    for own in students:
        if own.pruning.method == "none":  # what is cut out of the teacher is made of nothing else
            _untrained(replace(prepared, recipe=own), None)
    if prepared.recipe.trains_teacher and any(own.needs_teachers for own in students):
        teacher = _untrained_teacher(prepared.for_teacher())
        if any(own.needs_grid for own in students):
            _require_one_level(prepared.recipe, teacher)


def _require_one_level(recipe: Recipe, teacher: Detector) -> None:
    """Check that a teacher's map can be quantized as asked. Raises: InputError: it has several, each channel its s."""
    if recipe.quantizer.per_channel and len(teacher.strides) > 1:
        raise InputError("quantizer.per_channel=true needs a teacher of one level; leave it at false.")


def _untrained_teacher(prepared: Prepared) -> Detector:
    """The teacher before its first step: from published weights, or fresh."""
    return _started(prepared.teacher_spec, prepared.recipe.teacher.weights, prepared.recipe.seed)


def _untrained(prepared: Prepared, start: Stage | None) -> Detector:
    """A student before its first step: cut out of the teacher, from published weights, or fresh."""
    if start:
        return load_detector(start.file)[0]
    config = prepared.recipe.student
    return _started(prepared.spec(config.backbone), config.weights, prepared.recipe.seed)


def _started(spec: DetectorSpec, weights: str | None, seed: int) -> Detector:
    """A network before its first step."""
    detector = build(spec, seed)
    if weights:
        load_backbone(detector, weights)
    return detector
