"""The C source of an int8 file: compiled, it fits pictures as Pillow does and detects what the runtime detects."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_litert import on_grids, written

from qmimic.data.letterbox import letterbox
from qmimic.errors import InputError
from qmimic.runtime import Detector
from qmimic.runtime.metadata import Metadata
from qmimic.runtime.places import decode
from qmimic.runtime.suppression import detect
from qmimic.ship.c_source import BITS, resampling, write_c
from tiny_detectors import one_stage

pytest.importorskip("ai_edge_litert")
MAIN = """
#include <stdio.h>
#include <string.h>
#include "NAME.h"
static uint8_t rgb[UPPER_CAMERA_WIDTH * UPPER_CAMERA_HEIGHT * 3];
static int8_t input[UPPER_WIDTH * UPPER_HEIGHT * 3];
static int8_t places[UPPER_PLACES * (UPPER_CLASSES + 4)];
static NAME_detection found[UPPER_MOST];
int main(int count, char **words)
{
    if (count > 1 && !strcmp(words[1], "input")) {
        if (fread(rgb, 1, sizeof rgb, stdin) != sizeof rgb)
            return 1;
        NAME_input(rgb, input);
        fwrite(input, 1, sizeof input, stdout);
        return 0;
    }
    while (fread(places, 1, sizeof places, stdin) == sizeof places) {
        int kept = NAME_detect(places, found);
        printf("%d\\n", kept);
        for (int n = 0; n < kept; n++)
            printf("%d %d %d %d %d %d %s\\n", (int)found[n].corners[0], (int)found[n].corners[1],
                   (int)found[n].corners[2], (int)found[n].corners[3], (int)found[n].label, (int)found[n].score,
                   NAME_labels[found[n].label]);
    }
    return 0;
}
"""
CAMERA = 120, 213  # height and width


def built(folder: Path, camera: tuple[int, int] | None) -> tuple[Path, Metadata]:
    compiler = shutil.which("cc")
    if not compiler:
        pytest.skip("there is no C compiler")
    detector = on_grids(backbone="yunet/32", classes=('a "?', "naïve", "犬"))
    path = folder / "my-model.tflite"
    shipped = written(detector, path)
    sources = write_c(path, camera)
    main = folder / "main.c"
    main.write_text(MAIN.replace("NAME", "my_model").replace("UPPER", "MY_MODEL"))
    code = [one for one in [*sources, main] if one.suffix == ".c"]
    strict = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined"]
    subprocess.run([compiler, *strict, *code, "-o", folder / "run"], check=True)
    return folder / "run", shipped.metadata


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Metadata]:
    return built(tmp_path_factory.mktemp("c"), CAMERA)


def run(program: Path, given: bytes, *words: str) -> bytes:
    return subprocess.run([program, *words], input=given, capture_output=True, check=True).stdout


def test_pictures_are_fitted_as_by_pillow(program: tuple[Path, Metadata]) -> None:
    path, metadata = program
    generator = np.random.default_rng(0)
    for _ in range(5):
        pixels = generator.integers(0, 256, (*CAMERA, 3), dtype=np.uint8)
        wanted, _ = letterbox(Image.fromarray(pixels), metadata.size)
        found = np.frombuffer(run(path, pixels.tobytes(), "input"), np.int8).reshape(wanted.shape)
        np.testing.assert_array_equal(found.astype(np.int16) + 128, wanted)


@given(st.integers(1, 300), st.integers(1, 100))
def test_weights_are_pillow_s(source: int, target: int) -> None:
    pixels = np.random.default_rng(source).integers(0, 256, source, dtype=np.uint8)
    wanted = np.array(Image.fromarray(pixels[None]).resize((target, 1), Image.Resampling.BILINEAR))[0]
    firsts, weights = resampling(source, target)
    sums = [
        (1 << (BITS - 1)) + sum(weight * int(pixels[first + n]) for n, weight in enumerate(own))
        for first, own in zip(firsts, weights, strict=True)
    ]
    assert [min(max(one >> BITS, 0), 255) for one in sums] == wanted.tolist()


def rows_of(text: str) -> list[list[list[str]]]:
    lines = iter(text.splitlines())
    return [[next(lines).split(" ", 6) for _ in range(int(count))] for count in lines]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.floats(0.2, 60), st.floats(-8, 8))
def test_detections_are_the_runtime_s(program: tuple[Path, Metadata], seed: int, spread: float, middle: float) -> None:
    path, metadata = program
    generator = np.random.default_rng(seed)
    places = np.clip(generator.normal(middle * 4, spread, (189, 7)), -128, 127).astype(np.int8)
    (found,) = rows_of(run(path, places.tobytes()).decode())
    boxes, scores = (one[0] for one in decode(places[None], metadata))
    wanted = [(*box * 16, label, score) for box, score, label in zip(*detect(scores, boxes, metadata), strict=True)]
    wanted = [one for one in wanted if one[-1] >= 0]
    assert len(found) == len(wanted)
    np.testing.assert_array_equal([[int(v) for v in one[:5]] for one in found], [one[:5] for one in wanted] or found)
    np.testing.assert_allclose([int(one[5]) / 65535 for one in found], [one[5] for one in wanted], atol=1e-5)
    assert all(one[6] == metadata.classes[int(one[4])] for one in found)


def test_without_a_camera_pictures_are_the_input_s(tmp_path: Path) -> None:
    path, metadata = built(tmp_path, None)
    pixels = np.random.default_rng(1).integers(0, 256, (*metadata.size, 3), dtype=np.uint8)
    found = np.frombuffer(run(path, pixels.tobytes(), "input"), np.int8).reshape(pixels.shape)
    np.testing.assert_array_equal(found.astype(np.int16) + 128, pixels)


def test_its_own_source_is_replaced_and_nobody_else_s(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    written(on_grids(backbone="yunet/32"), path)
    before = [one.read_bytes() for one in write_c(path)]
    assert [one.read_bytes() for one in write_c(path)] == before
    (tmp_path / "m_detect.c").write_text("int main(void) { return 0; }\n")
    with pytest.raises(InputError, match=r"m_detect\.c does not say that qmimic wrote it"):
        write_c(path)
    assert (tmp_path / "m_detect.c").read_text() == "int main(void) { return 0; }\n"


def test_what_has_no_c_source(tmp_path: Path) -> None:
    written(one_stage().eval(), tmp_path / "a.tflite")
    with pytest.raises(InputError, match=r"is not an int8 \.tflite"):
        write_c(tmp_path / "a.tflite")
    written(on_grids(backbone="yunet/32"), tmp_path / "b.tflite")
    with pytest.raises(InputError, match="choose a camera size below 6 times"):
        write_c(tmp_path / "b.tflite", (480, 640))
    assert not list(tmp_path.glob("*.c"))
    assert Detector(tmp_path / "b.tflite").metadata.precision == "int8"
