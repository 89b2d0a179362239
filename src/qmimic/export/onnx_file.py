"""A detector as an ONNX file: one graph from uint8 pixels to detections, in standard operators alone."""

import contextlib
import io
import warnings
from typing import Any

import onnx
import torch
from onnxscript import opset20

from qmimic.errors import InputError
from qmimic.export.network import ShippedNetwork
from qmimic.models.two_stage import Detector
from qmimic.runtime.metadata import INPUT, OUTPUTS

OPSET = 20
op: Any = opset20  # traced, not run: its types are those of scripts


def build_graph(detector: Detector, batch: int | None) -> onnx.ModelProto:
    """The graph of a detector.

    Args:
        detector: in evaluation mode.
        batch: images that the graph takes at once; None: any number.

    Raises:
        InputError: the detector's map is quantized to powers of two, which the exporter cannot write.
    """
    if detector.quantizer is not None and detector.quantizer.config.kind == "power_of_two":
        raise InputError(
            "A map quantized to powers of two cannot be exported yet; export a detector without student.quantize_map, "
            "or one of quantizer.kind=uniform."
        )
    network = ShippedNetwork(detector).eval()
    height, width = detector.spec.size
    images = torch.zeros(batch or 2, height, width, 3, dtype=torch.uint8)
    free = None if batch else ({0: torch.export.Dim("batch")},)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # the exporter thinks aloud
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            (images,),
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            opset_version=OPSET,
            dynamic_shapes=free,
            dynamo=True,
            custom_translation_table={torch.ops.qmimic.suppress.default: _suppress},
        )
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    # The exporter notes the path of every line of code that an operator came from.
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    del model.graph.metadata_props[:]
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        del value.metadata_props[:]
    for tensor in model.graph.initializer:
        del tensor.metadata_props[:]
    onnx.checker.check_model(model, full_check=True)
    return model


def _suppress(boxes: Any, valid: Any, threshold: float, most: int) -> Any:
    """`qmimic.boxes.suppress` by ONNX's own operator, which wants scores: the boxes' order is all that there is."""
    count = op.Squeeze(op.Shape(valid, start=1, end=2))
    falling = op.Cast(op.Range(count, op.Constant(value_int=0), op.Constant(value_int=-1)), to=onnx.TensorProto.FLOAT)
    scores = op.Unsqueeze(op.Where(valid, falling, op.Constant(value_float=-1.0)), op.Constant(value_ints=[1]))
    limits = op.Constant(value_int=most), op.Constant(value_float=threshold), op.Constant(value_float=0.0)
    staying = op.NonMaxSuppression(boxes, scores, *limits)
    places = op.Gather(staying, op.Constant(value_ints=[0, 2]), axis=1)  # of [image, class, box]
    none = op.ConstantOfShape(op.Shape(valid), value=_tensor(0.0))
    ones = op.ConstantOfShape(op.Shape(places, start=0, end=1), value=_tensor(1.0))
    return op.Cast(op.ScatterND(none, places, ones), to=onnx.TensorProto.BOOL)


def _tensor(value: float) -> onnx.TensorProto:
    return onnx.helper.make_tensor("value", onnx.TensorProto.FLOAT, [1], [value])
