"""A graph in the words of an older set of ONNX's operators, for engines that know no newer ones."""

import numpy as np
import onnx

from qmimic.errors import InputError

OPSET = 20  # that graphs are written in
OLDEST = 17


def lower(model: onnx.ModelProto, opset: int) -> None:
    """Rewrite a graph for an older opset, in place, where its operators mean the same there.

    Between two opsets most operators only learn new types. What else has changed of those that detectors are made of:
    attributes that were added, which may be left out at their defaults, and attributes that became inputs. The file is
    proved afterwards like any other.

    Args:
        model: of opset `OPSET`, without subgraphs.
        opset: `OLDEST` to `OPSET`.

    Raises:
        InputError: an operator does not exist in that opset, or is used in a way that it does not know.
    """
    for node in model.graph.node:
        try:
            now, then = (onnx.defs.get_schema(node.op_type, version, node.domain) for version in (OPSET, opset))
        except onnx.defs.SchemaError as error:
            raise _needs_newer(opset, node.op_type) from error
        if now.since_version != then.since_version:
            _inputs_as_attributes(model.graph, node, then, opset)
            _without_defaults(node, now, then, opset)
    del model.opset_import[:]
    model.opset_import.append(onnx.helper.make_opsetid("", opset))
    model.ir_version = onnx.helper.find_min_ir_version_for(model.opset_import)


def _inputs_as_attributes(graph: onnx.GraphProto, node: onnx.NodeProto, then: onnx.defs.OpSchema, opset: int) -> None:
    """Give constant inputs that were attributes once, such as `axes`, as these."""
    if len(node.input) <= then.max_input:
        return
    now = onnx.defs.get_schema(node.op_type, OPSET, node.domain)
    constants = {one.name: one for one in graph.initializer}
    for place in range(then.max_input, len(node.input)):
        name, value = now.inputs[place].name, constants.get(node.input[place])
        if name not in then.attributes or value is None:
            raise _needs_newer(opset, node.op_type)
        node.attribute.append(onnx.helper.make_attribute(name, np.ravel(onnx.numpy_helper.to_array(value)).tolist()))
    del node.input[then.max_input :]
    used = {name for one in graph.node for name in one.input} | {one.name for one in graph.output}
    for one in [one for one in graph.initializer if one.name not in used]:
        graph.initializer.remove(one)


def _without_defaults(node: onnx.NodeProto, now: onnx.defs.OpSchema, then: onnx.defs.OpSchema, opset: int) -> None:
    for one in [one for one in node.attribute if one.name not in then.attributes]:
        usual = now.attributes[one.name].default_value
        if onnx.helper.get_attribute_value(one) != onnx.helper.get_attribute_value(usual):
            raise _needs_newer(opset, node.op_type)
        node.attribute.remove(one)


def _needs_newer(opset: int, operator: str) -> InputError:
    return InputError(
        f"The graph cannot be written in opset {opset}: it uses {operator} as only newer ones know it; give a higher "
        f"--opset, at most {OPSET}."
    )
