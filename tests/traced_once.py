"""torch's exporter takes seconds a network, and many tests export the same one: what is equal is traced once."""

import hashlib
import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import onnx
import pytest
from torch import nn

from qmimic.ship import onnx_file
from qmimic.ship.onnx_file import Exported

OF_TORCH = vars(nn.Module()).keys()  # parameters, buffers, hooks


@contextmanager
def tracing_once() -> Iterator[None]:
    """Keeps what torch's exporter wrote, for networks that are equal in all that it reads."""
    trace, kept = onnx_file._traced, dict[str, onnx.ModelProto]()

    def traced(exported: Exported) -> onnx.ModelProto:
        key = digest(exported)
        if key not in kept:
            kept[key] = trace(exported)
        graph = onnx.ModelProto()
        graph.CopyFrom(kept[key])
        return graph

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_file, "_traced", traced)
        yield


def digest(exported: Exported) -> str:
    """Of all that a graph is made of: modules with their attributes, such as a quantizer's config, and tensors."""
    detector = exported.detector
    parts = [repr((detector.spec, exported.batch, exported.suppression))]
    for name, module in detector.named_modules():
        own = {key: value for key, value in vars(module).items() if key not in OF_TORCH}
        parts.append(f"{name} {type(module)} {own}")
    digest = hashlib.sha256("\n".join(parts).encode())
    for name, tensor in itertools.chain(detector.named_parameters(), detector.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode() + tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()
