"""The commands at a terminal and in a pipe: how one begins, what is missing, width, colour, loudness, objects."""

import json
import os
import pty
import re
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from cli_cases import RECIPE, Refused, train
from qmimic import extras
from qmimic.api import build_detector
from qmimic.cli import installation as doctor
from qmimic.cli import main, start
from qmimic.cli.entry import parser
from qmimic.cli.runs import size
from qmimic.config import DetectorConfig, Recipe, embedded_recipes, load_recipe
from qmimic.detectors.build import mac_count, parameter_count
from qmimic.run.folder import StageResult
from qmimic.run.train import SHORT_COLUMNS, short_rows

LIGHT = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        heavy = {"torch", "torchvision", "pydantic", "yaml", "onnx", "scipy", "rich", "safetensors", "argcomplete"}
        if name.split(".")[0] in heavy | {"numpy", "PIL"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse())
from qmimic.cli import main; sys.exit(main(sys.argv[1:]))
"""


def light(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A command where nothing of training, and not even numpy, can be imported."""
    command = ["env", "COLUMNS=80", sys.executable, "-c", LIGHT, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


SLOW = """
import sys
from qmimic.cli import main
code = main(sys.argv[1:])
print(*sorted({"matplotlib", "scipy", "sympy", "torch._dynamo", "torchvision"} & set(sys.modules)), file=sys.stderr)
sys.exit(code)
"""


def test_a_trained_detector_is_read_without_what_takes_seconds_to_import(trained: Path) -> None:
    command = [sys.executable, "-c", SLOW, "eval", str(trained / "run" / "student.safetensors")]
    command += ["--data", str(trained / "cats"), "--split", "val"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "\n")


@pytest.mark.parametrize("arguments", [(), ("--help",), ("--version",), ("runs", "--help"), ("export", "--help")])
def test_these_need_no_library(arguments: tuple[str, ...]) -> None:
    done = light(*arguments)
    assert done.returncode == 0, done.stderr
    assert "qmimic" in done.stdout
    assert all(len(line) <= 80 for line in done.stdout.splitlines())


def test_a_command_says_which_extra_it_needs() -> None:
    for arguments in (("train", "demo"), ("train", "--help"), ("runs",), ("completion", "bash")):
        done = light(*arguments)
        assert done.returncode == 2
        needed = r"qmimic: \w+ is needed by this command but is not installed: pip install 'qmimic\[train\]'\.\n"
        assert re.fullmatch(needed, done.stderr)
    assert extras.extra_of("onnxruntime") == "runtime"
    assert extras.extra_of("cv2") == "video"
    assert extras.extra_of("openvino") == "openvino"


def test_alone_it_names_commands_that_are_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([]) == 0
    said = capsys.readouterr().out
    commands = [shlex.split(line.strip().split("   ")[0]) for line in said.splitlines() if line.startswith("  qmimic ")]
    assert len(commands) == 3
    for command in commands:
        parser().parse_args(command[1:])
    assert load_recipe(Path(commands[0][2]), []).folder == Path("runs/demo")


def test_alone_without_torch_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "pip install" not in start.text()
    monkeypatch.setattr(start, "version_of", lambda _: None)
    assert "pip install 'qmimic[train]'" in start.text()


def test_recipes_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused) -> None:
    monkeypatch.chdir(tmp_path)
    recipes = Path(__file__).parents[2] / "recipes"
    assert {name: path.read_text() for name, path in embedded_recipes().items()} == {
        path.stem: path.read_text() for path in recipes.glob("*.yaml")
    }
    assert load_recipe("demo", []) == load_recipe(recipes / "demo.yaml", [])
    (tmp_path / "bccd").mkdir()  # a folder is no recipe
    assert load_recipe("bccd", []).name == "bccd"
    (tmp_path / "demo").write_text("name: own")  # a file wins
    assert load_recipe("demo", []).name == "own"
    said = refused("train", "damo")
    assert "Unknown recipe 'damo'; did you mean demo? Known: " in said
    assert all(name in said for name in embedded_recipes())
    assert "Cannot read the recipe demo.yaml" in refused("train", "demo.yaml")
    assert "Cannot read the recipe a/demo" in refused("train", "a/demo")


def last_object(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    out = capsys.readouterr().out
    found = json.loads(out.splitlines()[-1], parse_constant=pytest.fail)
    assert isinstance(found, dict)
    return found


def test_train_and_its_objects(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cats, run = trained / "cats", tmp_path / "run"
    assert train(trained / "recipe.yaml", cats, run, "--json") == 0
    out, error = capsys.readouterr()
    assert out.count("\n") == 1  # all else is on stderr
    told = json.loads(out)
    assert told["student"] == str(run / "student.safetensors")
    assert told["networks"] == json.loads((run / "results.json").read_text())["stages"]
    assert "To ship" in error

    assert train(trained / "recipe.yaml", cats, run, "--json", "--quiet") == 0
    out, error = capsys.readouterr()
    assert (json.loads(out), error) == (told, "")

    student, picture = str(run / "student.safetensors"), str(cats / "val" / "val0.png")
    assert main(["predict", student, picture, "--out", str(tmp_path), "--min-score", "0", "--json"]) == 0
    (own,) = last_object(capsys)["pictures"]
    assert (own["picture"], own["drawing"]) == (picture, str(tmp_path / "val0.png"))
    assert {"box", "class", "score"} == own["detections"][0].keys()

    assert main(["export", student, "--out", str(tmp_path / "deploy"), "--json"]) == 0
    (file,) = last_object(capsys)["files"]
    assert Path(file["path"]).stat().st_size == file["bytes"]
    assert main(["bench", file["path"], "--rounds", "2", "--json"]) == 0
    (own,) = last_object(capsys)["files"]
    assert own["kilobytes"] == file["bytes"] / 1000

    assert main(["cost", "resnet18/16", "--json"]) == 0
    assert last_object(capsys)["backbones"][0]["backbone"] == "resnet18/16"
    one_stage = ["cost", "repvgg/16", "--json", "--set", "detector.architecture=one_stage", "detector.levels=[8,16]"]
    assert main(one_stage) == 0
    (cost,) = last_object(capsys)["backbones"]
    config = DetectorConfig(architecture="one_stage", levels=(8, 16))
    detector = build_detector("repvgg/16", ("object",), (128, 128), config=config)
    assert cost == {"backbone": "repvgg/16", "macs": mac_count(detector), "parameters": parameter_count(detector)}
    assert main(["cost", "repvgg/16", "--size", "48", "64", *one_stage[3:5]]) == 0  # no level of stride 32 fits
    assert main(["cost", "repvgg/16", "--set", "detector.levels=[8,16]"]) == 2
    assert main(["cost", "repvgg/16", "--set", "data.size=[64,64]"]) == 2


def test_how_loud_it_is(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*arguments: str) -> tuple[str, str]:
        capsys.readouterr()
        recipe, data = str(trained / "recipe.yaml"), f"data.root={trained / 'cats'}"
        options = [one for one in arguments if one.startswith("-")]
        run = tmp_path / "-".join(arguments)
        assert main([*options[:1], "train", recipe, data, f"run.dir={run}", *options[1:]]) == 0
        return capsys.readouterr()

    usual, _ = said("usual")
    quiet, error = said("quiet", "--quiet")
    verbose, seconds = said("verbose", "-v")
    assert "The teacher (resnet18/16) reaches" in usual
    assert "reaches" not in quiet
    assert "To ship: " in quiet
    assert error == ""
    assert "  min_map: 0" in verbose  # the recipe, resolved
    assert "teacher: " in verbose
    assert "s in all" in seconds
    assert "min_map" not in usual
    # After the command they count as well.
    assert main(["train", str(trained / "recipe.yaml"), "x.y=1", "--verbose"]) == 2
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert error.splitlines()[-1].startswith("qmimic: ")
    # On both sides of the command, the last one counts.
    assert main(["--quiet", "train", "x.yaml", "--verbose"]) == 2
    assert "Traceback" in capsys.readouterr().err
    assert main(["--verbose", "train", "x.yaml", "--quiet"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_both_at_once_are_refused(refused: Refused) -> None:
    assert "not allowed with" in refused("--quiet", "--verbose", "runs")


def at_terminal(arguments: list[str], **environment: str) -> bytes:
    """What a command writes to a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    process = subprocess.Popen(
        [sys.executable, "-m", "qmimic", *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**kept, "TERM": "xterm-256color", "COLUMNS": "80", **environment},
    )
    os.close(theirs)
    said = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:
            break
        if not part:
            break
        said += part
    os.close(ours)
    assert process.wait() == 0, said
    return said


COLOUR = re.compile(rb"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7])(?:;\d+)*m")


def test_colour_is_for_terminals_that_want_it(trained: Path, tmp_path: Path) -> None:
    def arguments(name: str) -> list[str]:
        own = [f"data.root={trained / 'cats'}", f"run.dir={tmp_path / name}", "mimic.mode=none"]  # one stage will do
        return ["train", str(trained / "recipe.yaml"), *own]

    command = [sys.executable, "-m", "qmimic", *arguments("piped")]
    piped = subprocess.run(command, capture_output=True, check=True)
    assert b"\x1b" not in piped.stdout + piped.stderr
    assert b"To ship" in piped.stdout
    assert COLOUR.search(at_terminal(arguments("usual")))
    assert not COLOUR.search(at_terminal(arguments("plain"), NO_COLOR="1"))


def row(name: str, backbone: str) -> StageResult:
    return StageResult(name, "0123456789ab", backbone, 1.0, 1.0, 1.0, 11_744_930, 98_136_200_000, 47_008_000, 1.0, 1.0)


def test_the_widest_table_fits(capsys: pytest.CaptureFixture[str]) -> None:
    from argparse import Namespace

    from qmimic.cli.output import Output, table

    results = tuple(
        row(name, backbone)
        for name, backbone in (
            ("quantized_teacher", "resnet18"),
            ("separable", "resnet18_separable/16"),
            ("taylor", "resnet18/16 pruned"),
        )
    )
    Output(Namespace(json=False)).result(table(SHORT_COLUMNS, short_rows(results), words=2))
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80
    assert "".join(lines).count("100.0") == 5 * len(results)
    assert "".join(lines).count("98136.2") == "".join(lines).count("47008") == len(results)
    assert "…" not in "".join(lines)


def test_sizes_are_short() -> None:
    for number, text in ((0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_500, "1 MB"), (10**12, "1.0 TB")):
        assert size(number) == text


def test_completion(tmp_path: Path) -> None:
    def completed(line: str) -> set[str]:
        """What argcomplete's shell function gets: it asks by environment, and reads descriptor 8."""
        told = tmp_path / "told"
        environment = {**os.environ, "_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "COMP_LINE": line}
        environment |= {"COMP_POINT": str(len(line)), "_ARGCOMPLETE_SUPPRESS_SPACE": "1", "_ARGCOMPLETE_SHELL": "bash"}
        environment |= {"COMP_TYPE": "9", "_ARGCOMPLETE_STDOUT_FILENAME": str(told)}
        script = (
            "import sys; sys.modules['torch'] = None\n"  # it has to be quick
            "from qmimic.cli import main; sys.exit(main([]))"
        )
        subprocess.run([sys.executable, "-c", script], env=environment, cwd=tmp_path, check=True)
        return {text.strip() for text in told.read_text().splitlines()}

    (tmp_path / "mine.yaml").write_text(RECIPE)
    (tmp_path / "runs" / "first").mkdir(parents=True)
    assert {"train", "data", "doctor", "runs"} <= completed("qmimic ")
    assert completed("qmimic tr") == {"train"}
    assert {"demo", "bccd", "mine.yaml"} <= completed("qmimic train ")
    assert completed("qmimic train demo student.ba") == {"student.backbone=", "student.batch_size="}
    assert {text.rpartition("=")[2] for text in completed("qmimic train demo teacher.decay=")} == {
        "cosine",
        "step",
        "constant",
    }
    assert completed("qmimic runs clean f") == {"first"}
    assert completed("qmimic bench x --thr") == {"--threads"}
    known = {f"{name}=" for name in completed("qmimic train demo ")}
    assert len(known) > len(Recipe.model_fields)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_scripts_are_the_shells_own(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert "qmimic" in capsys.readouterr().out


def test_doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", "--json"]) == 0
    told = last_object(capsys)
    assert told["ok"] is True
    assert told["versions"]["torch"]
    assert 0 < told["allowed"] <= told["cores"] == os.cpu_count()
    assert told["threads"] >= 1
    assert told["free_disk"] > 0
    assert {"runtime", "openvino", "train", "ray"} <= {own["name"] for own in told["extras"]}
    assert "dev" not in {own["name"] for own in told["extras"]}


def test_doctor_where_something_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    there = extras.version

    def missing(package: str) -> str:
        if package in ("torch", "openvino", "rich"):
            raise PackageNotFoundError(package)
        return there(package)

    monkeypatch.setattr(extras, "version", missing)
    assert main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert "Broken: Training needs torch, rich: pip install 'qmimic[train]'." in said
    assert "  openvino    missing: pip install 'qmimic[openvino]'" in said
    assert "torch missing" in said
    assert max(map(len, said.splitlines())) <= 80
    monkeypatch.setattr(extras, "version", there)
    monkeypatch.setattr(doctor, "_ASK_TORCH", "raise ImportError('libtorch_cpu.so: no such file')")
    assert main(["doctor"]) == 1
    assert "torch is installed but does not start" in " ".join(capsys.readouterr().out.split())


CPUINFO = "processor\t: 0\nmodel name\t: Toy 1\nflags\t\t: fpu {flags}\n"


@pytest.mark.parametrize(
    ("flags", "features", "int8", "bf16"),
    [
        ("avx2", ("AVX2",), "save space here", "in fp32"),
        ("avx2 avx512f avx512_vnni", ("AVX2", "AVX-512", "AVX-512 VNNI"), "are fast here", "in fp32"),
        ("avx512f avx512_bf16 amx_int8", ("AVX-512", "AVX-512 bf16", "AMX int8"), "(AMX int8)", "in bf16"),
        ("asimd asimddp", ("NEON", "NEON dot product"), "are fast here", "in fp32"),
        ("", (), "are unknown", ""),
    ],
)
def test_what_follows_from_the_processor(
    monkeypatch: pytest.MonkeyPatch, flags: str, features: tuple[str, ...], int8: str, bf16: str
) -> None:
    monkeypatch.setattr(doctor.sys, "platform", "linux")
    monkeypatch.setattr(doctor, "_text", lambda path: CPUINFO.format(flags=flags) if "cpuinfo" in str(path) else "")
    found = doctor._features()
    assert found == features
    said = " ".join(doctor._follows(found))
    assert int8 in said
    assert bf16 in said


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, 4),
        ({}, 4),
        ({"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu.cfs_quota_us": "200000\n", "cpu.cfs_period_us": "100000\n"}, 2),
    ],
)
def test_a_container_s_limit_counts(monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cores: float) -> None:
    monkeypatch.setattr(doctor.os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr(doctor, "_text", lambda path: files.get(path.name, ""))
    assert doctor._allowed() == cores


def test_settings_may_stand_before_and_behind_options(refused: Refused) -> None:
    assert "student.nothing" in refused("train", "demo", "seed=1", "--json", "student.nothing=2")
    assert "unrecognized arguments: --nothing=2" in refused("train", "demo", "--json", "--nothing=2")
    assert "unrecognized arguments: seed=2" in refused("predict", "a", "b", "--out", "c", "seed=2")
