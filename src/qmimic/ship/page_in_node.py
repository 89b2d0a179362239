"""A page's own engine in Node.js, which runs WebAssembly as a browser does: to prove a page before it ships."""

import json
import math
import os
import shutil
import struct
import subprocess
import threading
import weakref
from pathlib import Path

import numpy as np

from qmimic.errors import InputError
from qmimic.runtime import litert_engine
from qmimic.runtime.formats import Arrays, Session
from qmimic.runtime.metadata import INPUT, from_properties

DRIVER = Path(__file__).parent / "page" / "in_node.mjs"
PLACES = "places"  # what a detector says that leaves decoding to the runtime
TYPES = {"boxes": np.float32, "scores": np.float32, "labels": np.int64, PLACES: np.float32}
LENGTH = struct.Struct("<I")  # before what Node.js says


def session(path: Path, kin: Session) -> Session | None:
    """A page of ours run by its own engine; None where Node.js is missing or cannot.

    Args:
        path: of a page that this process has just written: what it holds is run as a program.
        kin: the model as another engine has loaded it.
    """
    node = shutil.which("node")
    if node is None or INPUT not in kin.inputs or None in kin.inputs[INPUT].shape:
        return None
    size = math.prod(side or 0 for side in kin.inputs[INPUT].shape)
    process = subprocess.Popen(
        [node, str(DRIVER), str(path), str(size)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    send, receive, turn = process.stdin, process.stdout, threading.Lock()

    def read() -> bytes:
        length = receive.read(LENGTH.size)
        content = receive.read(*LENGTH.unpack(length)) if len(length) == LENGTH.size else b""
        if not content:
            raise InputError(f"Node.js cannot run {path}: it ended; export the page again.")
        return content

    def run(feeds: Arrays) -> Arrays:
        with turn:
            try:
                send.write(np.ascontiguousarray(feeds[INPUT], np.uint8).tobytes())
                send.flush()
            except BrokenPipeError:
                read()  # which says that it ended
            shapes = json.loads(read())
            found = {name: np.frombuffer(read(), TYPES[name]).reshape(shape) for name, shape in shapes.items()}
        if PLACES in found:
            return litert_engine.regions(found[PLACES], metadata)
        return {name: values.copy() for name, values in found.items()}

    weakref.finalize(run, _end, process, os.getpid())
    metadata = from_properties(kin.properties, path)
    try:
        return Session(run, kin.inputs, kin.properties, read().decode())
    except InputError:
        return None


def _end(process: "subprocess.Popen[bytes]", owner: int) -> None:
    """End a process of Node.js, unless it is that of a fork's parent."""
    if os.getpid() == owner:
        process.kill()
        process.communicate()
