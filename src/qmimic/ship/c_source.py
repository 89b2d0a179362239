"""A `.tflite` on integers as C source for a microcontroller: the model as an array, and all that stands around it.

Four files: `NAME.h` and `NAME_data.c` hold the model, its sizes, labels and tables; `NAME_detect.c`, the same for every
detector but for its name, fits a camera's picture into the input and makes detections of the outputs, in integers, and
finds what `qmimic.runtime` finds in the same picture. What runs the model is the firmware's: TensorFlow Lite Micro, or
any interpreter of the format.
"""

import math
import re
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np

from qmimic.data.letterbox import FILL, fit
from qmimic.errors import InputError
from qmimic.files import LARGE, is_there, read_text, replacing
from qmimic.runtime.detector import Detector
from qmimic.runtime.metadata import Metadata
from qmimic.runtime.places import PIXEL_STEPS, distance_table, place_count, score_table
from qmimic.runtime.suppression import CANDIDATES

BITS = 22  # behind the point of a weight of a pixel, as in Pillow
SCORE_ONE = 65535
MARK = "/* Written by qmimic export. */"
MOST_TIMES = 6  # that a camera's picture may be wider than what is seen of it; above, Pillow averages blocks first


def write_c(path: Path, camera: tuple[int, int] | None = None) -> list[Path]:
    """Write C source beside a `.tflite` on integers.

    Args:
        path: of the file.
        camera: height and width of the pictures, pixels; None: those of the input.

    Returns:
        The files.

    Raises:
        InputError: the file is not on integers, the camera's pictures are too large, or the files cannot be written or
            would overwrite others.
    """
    metadata = Detector(path).metadata
    if metadata.precision != "int8" or path.suffix != ".tflite":
        raise InputError(f"{path.name} is not an int8 .tflite, so it has no C source; export with --int8 --to litert.")
    height, width = camera or metadata.size
    placed = fit(width, height, metadata.size)
    if min(width, height) < 1 or width >= MOST_TIMES * placed.inner[0] or height >= MOST_TIMES * placed.inner[1]:
        raise InputError(
            f"A camera's picture of {width} x {height} pixels cannot be fitted into an input of {metadata.size[1]} x "
            f"{metadata.size[0]}: choose a camera size below {MOST_TIMES} times the input's sides."
        )
    name = _name(path)
    header, data = _header_and_data(name, path.read_bytes(), metadata, (height, width), placed.inner)
    code = files("qmimic.ship").joinpath("c/detect.c").read_text(encoding="utf-8")
    places = _files(path)
    require_own_source(path)
    for place, text in zip(places, (header, data, _named(code, name)), strict=True):
        with replacing(place) as temporary:
            temporary.write_text(f"{MARK}\n{text}", encoding="utf-8")
    return places


def require_own_source(path: Path) -> None:
    """Check that C source beside a file, which need not be there yet, would overwrite none but our own.

    Raises:
        InputError: a file of such a name does not begin as ours do.
    """
    for own in _files(path):
        if is_there(own) and not read_text(own, LARGE).startswith(MARK):
            raise InputError(
                f"{own} does not say that qmimic wrote it, and would be overwritten; choose another folder, or move it."
            )


def _name(path: Path) -> str:
    """What a file's model is called in C."""
    name = re.sub(r"\W", "_", path.stem, flags=re.ASCII)
    return name if name[0].isalpha() else f"d_{name}"


def _files(path: Path) -> list[Path]:
    return [path.parent / f"{_name(path)}{end}" for end in (".h", "_data.c", "_detect.c")]


def resampling(source: int, target: int) -> tuple[list[int], list[list[int]]]:
    """How Pillow's bilinear filter makes `target` pixels of `source`: the first of each, and the weights of 22 bits.

    Pillow (libImaging/Resample.c) rounds the weights to integers, so the same integers give the same pixels.
    """
    if source == target:
        return list(range(source)), [[1 << BITS]] * source
    scale = source / target
    reach = max(scale, 1.0)
    firsts, weights = [], []
    for number in range(target):
        centre = (number + 0.5) * scale
        first, last = max(int(centre - reach + 0.5), 0), min(int(centre + reach + 0.5), source)
        exact = [max(0.0, 1 - abs((place - centre + 0.5) / reach)) for place in range(first, last)]
        firsts.append(first)
        weights.append([int(0.5 + one / sum(exact) * (1 << BITS)) for one in exact])
    return firsts, weights


def _header_and_data(
    name: str, model: bytes, metadata: Metadata, camera: tuple[int, int], inner: tuple[int, int]
) -> tuple[str, str]:
    upper = name.upper()
    across, down = resampling(camera[1], inner[0]), resampling(camera[0], inner[1])
    rows = max(map(len, down[1]))
    least = int(np.searchsorted(score_table(), np.float32(metadata.score_threshold), side="right")) - 129
    sizes = {
        "WIDTH": metadata.size[1],
        "HEIGHT": metadata.size[0],
        "CLASSES": len(metadata.classes),
        "PLACES": place_count(metadata),
        "MOST": metadata.max_detections,
        "CANDIDATES": min(CANDIDATES * metadata.max_detections, place_count(metadata) * len(metadata.classes)),
        "LEAST_OUTPUT": least,
        "NMS_THRESHOLD": round(metadata.nms_threshold * 65536),
        "CAMERA_WIDTH": camera[1],
        "CAMERA_HEIGHT": camera[0],
        "INNER_WIDTH": inner[0],
        "INNER_HEIGHT": inner[1],
        "ACROSS_TAPS": max(map(len, across[1])),
        "DOWN_TAPS": rows,
        "ROWS": rows,
        "ROWS_BYTES": rows * inner[0] * 3,
        "MODEL_BYTES": len(model),
    }
    counts = [(metadata.size[0] // stride) * (metadata.size[1] // stride) for stride in metadata.levels]
    distances = np.concatenate([distance_table(stride) for stride in metadata.levels])
    arrays: list[tuple[str, str, Sequence[int] | bytes]] = [
        ("uint8_t", "fill", FILL),
        ("int32_t", "level_places", counts),
        ("int32_t", "level_stride", metadata.levels),
        ("int32_t", "distance", distances.tolist()),
        ("uint16_t", "score", np.rint(score_table().astype(np.float64) * SCORE_ONE).astype(int).tolist()),
        *_tables("across", across),
        *_tables("down", down),
        ("uint8_t", "model", model),
    ]
    declared = "".join(f"extern const {kind} {name}_{own}[{len(values)}];\n" for kind, own, values in arrays)
    header = HEADER.format(
        name=name,
        upper=upper,
        size=f"{metadata.size[1]} x {metadata.size[0]}",
        camera=f"{camera[1]} x {camera[0]}",
        steps=PIXEL_STEPS,
        sizes="".join(f"#define {upper}_{key} {value}\n" for key, value in sizes.items()),
        declared=declared,
    )
    labels = ",\n    ".join(_c_text(one) for one in metadata.classes)
    data = [
        f'#include "{name}.h"\n',
        f"const char *const {name}_labels[{len(metadata.classes)}] = {{\n    {labels}}};\n",
    ]
    for kind, own, values in arrays:
        aligned = "_Alignas(16) " if own == "model" else ""
        data.append(f"{aligned}const {kind} {name}_{own}[{len(values)}] = {{\n{_lines(values)}}};\n")
    return header, "\n".join(data)


def _tables(own: str, resampled: tuple[list[int], list[list[int]]]) -> list[tuple[str, str, Sequence[int]]]:
    firsts, weights = resampled
    taps = max(map(len, weights))
    flat = [value for one in weights for value in (*one, *[0] * (taps - len(one)))]
    counts = [len(one) for one in weights]
    return [("int32_t", own, flat), ("int32_t", f"{own}_first", firsts), ("int32_t", f"{own}_count", counts)]


def _lines(values: Iterable[int]) -> str:
    text = [str(int(value)) for value in values]
    width = 16
    return "".join(
        f"    {', '.join(text[place * width : (place + 1) * width])},\n"
        for place in range(math.ceil(len(text) / width))
    )


def _c_text(label: str) -> str:
    """A string literal: every byte that C could misread as an octal escape."""
    plain = "".join(
        chr(byte) if 32 <= byte < 127 and chr(byte) not in '"\\?' else f"\\{byte:03o}" for byte in label.encode()
    )
    return f'"{plain}"'


def _named(code: str, name: str) -> str:
    return code.replace("NAME_UPPER", name.upper()).replace("NAME", name)


HEADER = """\
/* A detector of {size} pixels for pictures of {camera} pixels; made by qmimic, see {name}_detect.c. */

#ifndef {upper}_H
#define {upper}_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {{
#endif

{sizes}
typedef struct {{
    int32_t corners[4]; /* x1, y1, x2, y2, in sixteenths of a pixel of the network's input */
    int32_t label;      /* index in {name}_labels */
    int32_t score;      /* of 65535 */
}} {name}_detection;

extern const char *const {name}_labels[{upper}_CLASSES]; /* UTF-8 */
{declared}
/* Fit a picture, RGB of 8 bits, row by row, into the input of {name}_model: int8, 128 below the pixel. */
void {name}_input(const uint8_t *rgb, int8_t *input);

/* Detections of the model's output, int8 [{upper}_PLACES, {upper}_CLASSES + 4], in falling order of score. Returns how
   many there are; `found` has room for {upper}_MOST. */
int {name}_detect(const int8_t *places, {name}_detection *found);

#ifdef __cplusplus
}}
#endif

#endif
"""
