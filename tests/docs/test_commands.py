"""Every command of the documentation is run, in short, on a small set of pictures under the names that the pages use.

What cannot be run here stands in NOT_RUN, with the reason and with what is checked instead. A command that is neither
run nor listed fails, and so does a line of the list that no page needs any more. To shorten a training, `shorter`
appends settings; the pages know nothing of that.
"""

import argparse
import re
import runpy
import shlex
import shutil
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml
from pages import PAGES, ROOT, Command, blocks, commands, inline
from PIL import Image

import qmimic
from qmimic.cli import main
from qmimic.cli.entry import parser
from qmimic.config import Recipe, load_recipe, settings
from qmimic.data import synthetic
from qmimic.data.convert import convert
from qmimic.errors import InputError
from qmimic.run.effects import why_idle
from qmimic.runtime.__main__ import grammar
from qmimic.runtime.__main__ import main as runtime

FILES = (".py", ".json", ".yaml", ".md", ".onnx", ".xml", ".pte", ".gz", ".safetensors")  # no keys of recipes
OWN = "add-your-own.md"  # tests/docs/test_add_your_own.py runs its commands, in the package that it changes

QUICK = [
    f"{stage}.{key}"
    for stage in ("teacher", "quantized_teacher", "student")
    for key in ("steps=2", "batch_size=2", "warmup_steps=1")
]
QUICK += [
    "teacher.min_map=0",
    "teacher.backbone=resnet18/16",
    "student.backbone=resnet18/32",
    "run.threads=1",
    "detector.score_threshold=0",
]
QUICK += ["detector.anchor_count=3", "detector.pre_nms=64", "detector.post_nms=16", "data.cache_mib=8"]
QUICK += ["pruning.rounds=1", "pruning.steps=1", "pruning.images=2"]
QUICK += ["run.report=false"]  # tests/report has reports; each exports all networks of its run to time them
INTEGERS = ["int8.steps=1", "int8.max_loss=1", "int8.images=4", "int8.batch_size=2"]

RECIPE = """
name: {name}
data: {{root: photos, size: [64, 64]}}
augment: {{flip: 0, scale: [1, 1], shift: 0, colour: 0}}
student: {{backbone: resnet18/32}}
"""
STUDY = "{name: order, recipe: ../recipes/demo.yaml, arms: {scratch: {mimic.mode: none}}, seeds: [0]}"


EXPORT = ["qmimic", "export", "runs/demo/student.safetensors", "--int8", "--to", "onnx,openvino"]


def shorter(words: Sequence[str]) -> list[str]:
    """The same `qmimic` command with settings that make it short."""
    command = words[1]
    if command == "train":
        return [*words, *quick(Path(words[2]), words[3:])]
    if command == "export":
        return [*words, *([] if "--set" in words else ["--set"]), *INTEGERS]
    if command == "bench":
        return [*words, "--rounds", "2"]
    return list(words)


def quick(path: Path, overrides: Sequence[str]) -> list[str]:
    """Settings that shorten a training, as far as its recipe reads them and the command does not name them."""
    named = [one for one in overrides if not one.startswith("-")]
    own = [] if any(one.startswith("baselines=") for one in named) else ["baselines=[taylor]"]  # the tutorial ships it
    recipe = load_recipe(path, [*named, *own, *QUICK])
    return [*own, *(setting for setting in QUICK if not why_idle(recipe, setting.partition("=")[0]))]


def parse_qmimic(words: Sequence[str]) -> None:
    parser().parse_args(list(words[words.index("qmimic") + 1 :]))


def parse_runtime(words: Sequence[str]) -> None:
    grammar().parse_args(list(words[3:]))


def has_target(words: Sequence[str]) -> None:
    rules = (ROOT / "Makefile").read_text()
    assert re.search(rf"^{words[1]}:", rules, re.MULTILINE), f"the Makefile has no {words[1]}"


def has_extras(words: Sequence[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in words[2:]:
        asked = re.search(r"\[([a-z0-9,]+)\]$", word)
        assert not asked or set(asked[1].split(",")) <= set(extras), f"{word} names an extra that there is not"


def has_stage(words: Sequence[str]) -> None:
    stages = re.findall(r"^FROM .* AS (\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert "--target" not in words or words[words.index("--target") + 1] in stages
    if words[1] == "run":  # what stands behind the image's name is an argument of its entry point
        image = next(place for place, word in enumerate(words) if word in ("qmimic", "qmimic-runtime"))
        (parser() if words[image] == "qmimic" else grammar()).parse_args(list(words[image + 1 :]))


def has_options(words: Sequence[str]) -> None:
    text = (ROOT / words[1]).read_text()
    for word in words[2:]:
        assert not word.startswith("--") or f'"{word}"' in text, f"{words[1]} has no {word}"


def is_there(words: Sequence[str]) -> None:
    assert (ROOT / words[1]).is_file()


def nothing(words: Sequence[str]) -> None:
    pass


@dataclass(frozen=True)
class NotRun:
    """Commands that begin so (or match, where a `*` stands) are not run: why, and what is checked instead."""

    begins: str
    why: str
    check: Callable[[Sequence[str]], None]

    def covers(self, command: Command) -> bool:
        pattern = ".*".join(map(re.escape, self.begins.split("*")))
        return re.match(pattern, shlex.join(command.words)) is not None


NOT_RUN = (
    NotRun("make ", "it sets up the environment that the tests run in; .ci/run calls the targets", has_target),
    NotRun("pip install", "it needs the network; tests/release installs the wheel", has_extras),
    NotRun("docker ", "no Docker engine runs where the tests run", has_stage),
    NotRun("scp ", "it needs a device", nothing),
    NotRun("accelerate launch", "several GPUs; tests/cli/test_cli_processes.py runs two processes", parse_qmimic),
    NotRun("torchrun", "several GPUs; tests/cli/test_cli_processes.py runs two processes", parse_qmimic),
    NotRun("qmimic serve", "it serves until Ctrl-C; tests/serve starts it", parse_qmimic),
    NotRun("qmimic runs clean", "it asks at a terminal; tests/cli/test_runs.py has one", parse_qmimic),
    NotRun("qmimic train *run.trackers", "MLflow is an extra; tests/training/test_trackers.py has it", parse_qmimic),
    NotRun(
        "qmimic train * teacher.weights=", "it fetches weights; tests/detectors/test_timm.py reads some", parse_qmimic
    ),
    NotRun("qmimic train *data.unlabelled", "a teacher of two steps labels nothing; tests/run has one", parse_qmimic),
    NotRun("qmimic train *timm:", "its answer is a refusal; tests/detectors/test_timm.py asks for it", nothing),
    NotRun("curl ", "it asks a server; tests/serve asks the same", nothing),
    NotRun("qmimic data get", "it needs the network; tests/data/test_download.py has a server", parse_qmimic),
    NotRun("qmimic fit", "it times two dozen networks; tests/run/test_fit.py runs it on fewer", parse_qmimic),
    NotRun("qmimic study * --ray", "it needs a cluster; tests/study/test_cluster.py starts one", parse_qmimic),
    NotRun("qmimic * --widerface", "it needs WIDER FACE; tests/run/test_recipes.py makes a small one", parse_qmimic),
    NotRun(
        "qmimic export *--to ncnn", "it puts a whole data set on integers; tests/ship has a small one", parse_qmimic
    ),
    NotRun("qmimic export *--to web", "it needs an npm package; tests/ship runs it where it is there", parse_qmimic),
    NotRun(
        "python -m qmimic.runtime *.tflite",
        "the demo's detector has two stages; tests/ship has one of one",
        parse_runtime,
    ),
    NotRun("python -m qmimic.runtime * --video", "it needs a camera; tests/runtime has a video", parse_runtime),
    NotRun("python benchmarks/", "minutes, and their figures are of a quiet machine", has_options),
    NotRun("python tools/house.py", "tests/docs/test_house.py compares what it draws", is_there),
)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that has what the pages name: photos, recipes, finished runs, files to ship."""
    root = tmp_path_factory.mktemp("workshop")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        convert(synthetic.digits(12, 6, 4), root / "photos", "yolo")
        pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
        Image.fromarray(pixels).save("photo.jpg")
        Image.fromarray(pixels).save("photos/another.jpg")  # a dataset, and a folder of pictures
        Path("pictures").mkdir()
        Image.fromarray(pixels).save("pictures/one.jpg")
        Path("dets.json").write_text(
            '[{"file_name": "val-0-1-0", "category": "1", "bbox": [1, 2, 30, 40], "score": 0.9}]'
        )
        Path("recipes").mkdir()
        for name in ("demo", "bccd"):
            Path(f"recipes/{name}.yaml").write_text(RECIPE.format(name=name))
        Path("studies").mkdir()
        Path("studies/order.yaml").write_text(STUDY)
        # What the recipe of a study leaves out cannot be appended to its command.
        recipe = yaml.safe_load(RECIPE.format(name="demo"))
        for setting in QUICK:
            key, _, value = setting.partition("=")
            section, _, name = key.partition(".")
            if section != "pruning":  # nothing is pruned by this recipe alone
                recipe.setdefault(section, {})[name] = yaml.safe_load(value)
        Path("recipes/demo.yaml").write_text(yaml.safe_dump(recipe))
        shutil.copytree(ROOT / "docs" / "results" / "order", "runs/study-order")
        assert (
            main(["train", "recipes/demo.yaml", "baselines=[]", *quick(Path("recipes/demo.yaml"), ["baselines=[]"])])
            == 0
        )
        assert main(shorter(EXPORT)[1:]) == 0
        for name in ("bccd", "bccd-1", "bccd-2", "photos"):
            shutil.copytree("runs/demo", f"runs/{name}", ignore=shutil.ignore_patterns("stages", "bank", "pixels"))
        for name in ("student.onnx", "student-int8.xml", "student-int8.bin"):
            shutil.copy(f"runs/demo/deploy/{name}", name)
        shutil.copy("student.onnx", "taylor.onnx")  # copied to a device
        Path("peers").mkdir()
        shutil.copy("student.onnx", "peers/other.onnx")
    return root


def run(command: Command) -> None:
    """Run a command in this process, in the folder that it is in."""
    words = [
        name for word in command.words for name in (sorted(map(str, Path().glob(word))) if "*" in word else [word])
    ]
    match words:
        case ["qmimic", *_]:
            try:
                code = main(shorter(words)[1:])
            except SystemExit as ended:  # --help
                code = int(str(ended.code or 0))
        case ["python", "-m", "qmimic.runtime", *rest]:
            code = runtime(rest)
        case ["python", "-m", "build", *_]:
            code = 0  # tests/release builds
        case ["python", str(script), *rest]:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(sys, "argv", [script, *rest, "--out", "pictures"])
                with pytest.raises(SystemExit) as ended:
                    runpy.run_path(str(ROOT / script), run_name="__main__")
            code = int(str(ended.value.code or 0))
        case _:
            raise AssertionError(f"{command} is neither run nor listed in NOT_RUN")
    assert code == 0, f"{command} ended with {code}"


def small_digits(*_: object) -> synthetic.Dataset:
    return DIGITS(12, 6, 4)


DIGITS = synthetic.digits


def test_every_command_runs(
    workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(synthetic, "digits", small_digits)
    monkeypatch.setattr(qmimic, "load_recipe", _short_recipe, raising=False)
    done = {shlex.join(shorter(EXPORT))}
    wrong: list[str] = []
    for page in PAGES:
        own = [one for one in commands(page) if not any(rule.covers(one) for rule in NOT_RUN)]
        code = [block for block in blocks(page) if block.language == "python" and not block.text.startswith("# src/")]
        if page.name == OWN or not own + code:
            continue
        folder = tmp_path / page.stem
        shutil.copytree(workshop, folder)
        monkeypatch.chdir(folder)
        for block in blocks(page):  # a recipe that the page tells to save
            name = (yaml.safe_load(block.text) or {}).get("name") if block.language == "yaml" else None
            if name and not any(folder.rglob(f"{name}.yaml")):
                Path(f"{name}.yaml").write_text(block.text)
        if page.name == "tutorial.md":  # it begins with making them
            shutil.rmtree("photos")
        for command in own:
            once = re.sub(r"runs/\w+", "runs/demo", shlex.join(shorter(command.words)))
            if command.words[1] in ("export", "bench") and once in done:
                continue  # of equal files, in the same way: seconds each
            done.add(once)
            try:
                run(command)
            except Exception as error:  # all faults of all pages at once
                wrong.append(f"{command}\n    {error}\n    {capsys.readouterr().err[-300:]}")
        for block in code:
            try:
                exec(compile(block.text, f"{page}:{block.line}", "exec"), {})  # the page's own words
            except Exception as error:
                wrong.append(f"{page}:{block.line}: {error!r}")
    assert not wrong, "\n".join(wrong)


def _short_recipe(path: str, overrides: list[str]) -> Recipe:
    return load_recipe(Path(path), [*overrides, *quick(Path(path), overrides)])


@pytest.mark.parametrize("rule", NOT_RUN, ids=lambda rule: rule.begins)
def test_what_is_not_run_is_checked(rule: NotRun) -> None:
    own = [one for page in PAGES if page.name != OWN for one in commands(page) if rule.covers(one)]
    assert own, f"no page has a command {rule.begins!r} any more; take it off the list"
    for command in own:
        try:
            rule.check(command.words)
        except InputError as error:
            raise AssertionError(f"{command}: {error}") from error


def test_commands_within_sentences_exist() -> None:
    """`qmimic data check`, `qmimic study FILE --ray ADDRESS`: the words and options are those of the parsers."""
    wrong = []
    for page in PAGES:
        for text in inline(page):
            if text.startswith("qmimic ") and (fault := _unknown(text.split()[1:])):
                wrong.append(f"{page.relative_to(ROOT)}: `{text}`: {fault}")
    assert not wrong, "\n".join(wrong)


def _unknown(words: Sequence[str]) -> str:
    """What a parser does not know of these words; placeholders in capitals may stand for values."""
    own: argparse.ArgumentParser = parser()
    for word in words:
        inner = [action for action in own._actions if isinstance(action, argparse._SubParsersAction)]
        if word.startswith("-"):
            if word not in own._option_string_actions:
                return f"no option {word}"
        elif inner and word in inner[0].choices:
            own = inner[0].choices[word]
        elif inner:
            return f"no command {word}"
    return ""


def test_recipe_keys_that_are_named_exist() -> None:
    """`student.steps`, `mimic.mode=none`: what looks like a key of a recipe is one."""
    known = {one.key for one in settings()}
    sections = {key.partition(".")[0] for key in known if "." in key}
    wrong = []
    for page in PAGES:
        for text in inline(page):
            key = text.partition("=")[0]
            looks = re.fullmatch(r"([a-z_0-9]+)\.[a-z_0-9]+", key)
            if looks and looks[1] in sections and key not in known and not key.endswith(FILES):
                wrong.append(f"{page.relative_to(ROOT)}: {text}")
    assert not wrong, "\n".join(wrong)


def test_a_command_that_nobody_knows_would_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "Do\n\n    qmimic frobnicate photos   # well\n    $ pip uninstall qmimic\n\nand `qmimic eval --fast`.\n"
    )
    monkeypatch.setattr("pages.ROOT", tmp_path)
    first, second = commands(page)
    assert (first.words, first.line) == (("qmimic", "frobnicate", "photos"), 3)
    assert not any(rule.covers(one) for one in (first, second) for rule in NOT_RUN)
    with pytest.raises(AssertionError, match="ended with 2"):
        run(first)
    with pytest.raises(AssertionError, match="neither run nor listed"):
        run(second)
    assert _unknown(inline(page)[0].split()[1:]) == "no option --fast"
