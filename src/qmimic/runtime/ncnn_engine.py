"""ncnn's files, `.ncnn.param` with its `.ncnn.bin` and `.ncnn.json`, on the CPU."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from qmimic.errors import InputError
from qmimic.files import LARGE, read_bytes, read_json
from qmimic.runtime.formats import Arrays, Input, Session, cannot_run, require_survival
from qmimic.runtime.metadata import GRAPH_SUM, INPUT, REGIONS, WEIGHTS_SUM, from_properties

WEIGHTS, SAID = ".bin", ".json"  # in the place of `.param`
SPIN_MILLISECONDS = 20  # ncnn's own, that a thread waits for the next run
HALVES = ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage", "bf16_packed")
# Loads two files, and runs the net once.
TRIAL = """
import sys
import ncnn, numpy as np
layers, weights, width, height = sys.argv[1:5]
net = ncnn.Net()
net.opt.num_threads, net.opt.use_vulkan_compute = 1, False
if net.load_param(layers) == 0 and net.load_model(weights) == 0:
    extractor = net.create_extractor()
    pixels = np.zeros((int(height), int(width), 3), np.uint8)
    extractor.input(sys.argv[5], ncnn.Mat.from_pixels(pixels, ncnn.Mat.PixelType.PIXEL_RGB, int(width), int(height)))
    found = [np.array(extractor.extract(name)[1]) for name in sys.argv[6:]]
"""
_PROCESS = os.getpid()  # that imported this module, and the engine with it


def open_file(path: Path, threads: int, spin: bool) -> Session:
    """See `qmimic.runtime.formats`. Halves of floats are off: what is computed is what was proved.

    ncnn ends the process over some damaged layers, so another process runs the net first.
    """
    try:
        import ncnn
    except ImportError as error:
        raise InputError("ncnn is not installed: pip install 'qmimic[ncnn]'.") from error
    properties = _properties(path)
    metadata = from_properties(properties, path)
    height, width = metadata.size
    parts = path, beside(path, WEIGHTS)
    given = [*map(str, (*parts, width, height)), INPUT, *REGIONS]
    require_survival(path, "ncnn", TRIAL, given, *(read_bytes(one, LARGE) for one in parts))
    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_vulkan_compute = False
    net.opt.openmp_blocktime = SPIN_MILLISECONDS if spin else 0
    for name in HALVES:
        if hasattr(net.opt, f"use_{name}"):
            setattr(net.opt, f"use_{name}", False)
    engine = f"ncnn {ncnn.__version__}"
    # In a fork, OpenMP waits for threads that only the parent has; a thread of the fork's own has a team of its own.
    apart = ThreadPoolExecutor(1) if threads > 1 and os.getpid() != _PROCESS else None

    def load() -> bool:
        return not net.load_param(str(path)) and not net.load_model(str(beside(path, WEIGHTS)))

    if not (apart.submit(load).result() if apart else load()):
        raise cannot_run(path, engine, "ncnn", ValueError("its layers or weights cannot be read"))
    if sorted(net.output_names()) != sorted(REGIONS) or list(net.input_names()) != [INPUT]:
        raise cannot_run(path, engine, "ncnn", ValueError("it has other inputs and outputs"))

    def look(pixels: Any) -> Arrays:
        extractor = net.create_extractor()  # of a thread's own; the net is for all
        extractor.input(INPUT, ncnn.Mat.from_pixels(pixels, ncnn.Mat.PixelType.PIXEL_RGB, width, height))
        found = {}
        for name in REGIONS:
            failed, values = extractor.extract(name)
            if failed:
                raise cannot_run(path, engine, "ncnn", ValueError(f"it gives no {name}"))
            found[name] = np.array(values)
        boxes, scores = (found[name] for name in REGIONS)
        return {REGIONS[0]: boxes[None, :, None], REGIONS[1]: scores[None]}

    def run(feeds: Arrays) -> Arrays:
        pixels = np.ascontiguousarray(feeds[INPUT][0])
        return apart.submit(look, pixels).result() if apart else look(pixels)

    return Session(run, {INPUT: Input((1, height, width, 3), np.dtype(np.uint8))}, properties)


def checksum(path: Path) -> str:
    """See `qmimic.runtime.formats`."""
    return graph_sum(path, _sum_of(read_bytes(beside(path, WEIGHTS), LARGE)))


def graph_sum(path: Path, weights: str) -> str:
    """The checksum, if the weights had this one."""
    return _sum_of(read_bytes(path, LARGE) + weights.encode())


def beside(path: Path, suffix: str) -> Path:
    """The file that belongs to a `.param`."""
    return path.with_suffix(suffix)


def _properties(path: Path) -> dict[str, str]:
    """What the files say of themselves. Raises InputError: one is missing, or they are not of one export."""
    weights, said = beside(path, WEIGHTS), beside(path, SAID)
    if not weights.is_file():
        raise InputError(f"{weights}, the weights of {path.name}, is missing; copy all three files.")
    if not said.is_file():
        raise InputError(f"{said}, the description of {path.name}, is missing; copy all three files.")
    properties = read_json(said)
    if not isinstance(properties, dict) or not all(isinstance(one, str) for one in properties.values()):
        raise InputError(f"{said}, the description of {path.name}, cannot be read; copy all three files again.")
    own, written = _sum_of(read_bytes(weights, LARGE)), properties.get(WEIGHTS_SUM, "")
    if GRAPH_SUM in properties and own != written and graph_sum(path, written) == properties[GRAPH_SUM]:
        raise InputError(f"{weights} is not the file that {path.name} was written with; copy all three files again.")
    return properties


def _sum_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
