"""ExecuTorch programs, `.pte` with its `.json`, by ExecuTorch's Python interpreter, which needs torch."""

import hashlib
import threading
from pathlib import Path

import numpy as np

from qmimic.errors import InputError
from qmimic.files import LARGE, read_bytes, read_json
from qmimic.runtime.formats import Arrays, Input, Session, cannot_run, refuse_other_kinds
from qmimic.runtime.metadata import CLASSIFY, EXTRACT, FORWARD, INPUT, REGIONS, WEIGHTS_SUM, from_properties
from qmimic.runtime.suppression import propose

NAMES = {"look": EXTRACT, "judge": CLASSIFY}  # of files that an older qmimic wrote


def open_file(path: Path, threads: int, spin: bool) -> Session:
    """See `qmimic.runtime.formats`. A run is a program's two methods with the suppression between them; a one-stage
    detector has one method.

    All programs of a process share their threads, whose number the last one opened sets; `spin` is ignored, the threads
    always sleep between runs.
    """
    try:
        import torch
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime
    except ImportError as error:
        raise InputError("ExecuTorch is not installed: pip install 'qmimic[executorch]'.") from error
    refuse_other_kinds(path)
    said = path.with_suffix(".json")
    try:
        properties = read_json(said)
        if checksum(path) != properties.get(WEIGHTS_SUM):
            raise InputError(f"{path} does not belong to {said.name}; copy both files again.")
    except AttributeError as error:
        raise InputError(f"{said}, the description of {path.name}, cannot be read; copy both files.") from error
    metadata = from_properties(properties, path)
    try:
        portable_lib._unsafe_reset_threadpool(threads)  # XNNPACK's threads, which torch's own setting does not affect
        program = Runtime.get().load_program(path)
        loaded = {NAMES.get(name, name): program.load_method(name) for name in program.method_names}
        classify = loaded.get(CLASSIFY)
        extract = loaded[FORWARD if FORWARD in loaded else EXTRACT]
    except Exception as error:  # its exceptions have no narrower common type
        raise cannot_run(path, "ExecuTorch", "executorch", error) from error
    guard = threading.Lock()  # a method holds the results of its last run

    def run(feeds: Arrays) -> Arrays:
        with guard:
            seen = extract.execute([torch.from_numpy(np.ascontiguousarray(feeds[INPUT]))])
            if classify is None:
                scores, boxes = seen
                return dict(zip(REGIONS, (boxes.numpy().copy(), scores.numpy().copy()), strict=True))
            features, candidates = seen
            regions, valid = propose(candidates.numpy()[0], metadata)
            scores, boxes = classify.execute([features, torch.from_numpy(regions)[None]])
            counted = np.where(valid[:, None], scores.numpy()[0], np.float32(-1))
            return dict(zip(REGIONS, (boxes.numpy().copy(), counted[None]), strict=True))

    return Session(run, {INPUT: Input((1, *metadata.size, 3), np.dtype(np.uint8))}, properties)


def checksum(path: Path) -> str:
    """See `qmimic.runtime.formats`."""
    return hashlib.sha256(read_bytes(path, LARGE)).hexdigest()
