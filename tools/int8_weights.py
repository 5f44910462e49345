# SPDX-License-Identifier: Apache-2.0
"""Rewrites the weights of an OpenVINO model to int8, symmetric, one scale per output channel.

Why: 4-bit weights in groups of 32 have to be unpacked, shifted and scaled group by group, and one token's step spends
more time on that than it saves by reading fewer bytes. One scale per output channel can be applied once, after the
whole dot product. The form written, Constant(i8) -> Convert -> Multiply(scale), is the one that the CPU plugin keeps
compressed and executes as such.

The weights' float values are folded from whatever stands before them: a plain constant, a half-precision one behind a
Convert, or the 4-bit and 8-bit group decompression (Convert, Subtract, Multiply, Reshape) that importers write.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import openvino as ov
from openvino import opset13 as ops

# A weight is smallest of what is worth eight bits: a matrix. Vectors (norms, biases) stay as they are.
_MATRIX_RANK = 2
_INT8_MAX = 127


@dataclasses.dataclass(frozen=True)
class Quantised:
    values: np.ndarray  # int8, the weight's shape
    scales: np.ndarray  # float32, the weight's shape with 1 along the input axis


@dataclasses.dataclass(frozen=True)
class Summary:
    matrices: int
    weights: int
    relative_error: float  # root mean square of the error over root mean square of the weights


def quantise(weight: np.ndarray, input_axis: int) -> Quantised:
    """Rounds `weight` to int8 with one scale for each slice along `input_axis`, the axis that a dot product sums over."""
    largest = np.max(np.abs(weight), axis=input_axis, keepdims=True).astype(np.float32)
    scales = largest / np.float32(_INT8_MAX)
    # A channel of zeros has no scale of its own; any will do, and 1 divides without a warning.
    scales = np.where(scales > 0, scales, np.float32(1))
    values = np.clip(np.rint(weight / scales), -_INT8_MAX, _INT8_MAX).astype(np.int8)
    return Quantised(values, scales)


def _constant_values(node: ov.Node) -> np.ndarray:
    shape = list(node.get_output_shape(0))
    element_type = node.get_output_element_type(0)
    if element_type in (ov.Type.u4, ov.Type.i4):
        packed = np.asarray(node.data).view(np.uint8).ravel()
        # Two values in a byte, the first in the low half.
        nibbles = np.stack([packed & 0x0F, packed >> 4], axis=-1).ravel()[: int(np.prod(shape))]
        if element_type == ov.Type.i4:
            nibbles = ((nibbles ^ 8).astype(np.int8) - 8).astype(np.int8)
        return nibbles.reshape(shape).astype(np.float32)
    if element_type == ov.Type.bf16:
        halves = np.asarray(node.data).view(np.uint16).ravel().astype(np.uint32)
        return (halves << 16).view(np.float32).reshape(shape)
    if element_type in (ov.Type.f16, ov.Type.f32, ov.Type.f64, ov.Type.i8, ov.Type.u8, ov.Type.i32, ov.Type.i64):
        return np.asarray(node.data).reshape(shape).astype(np.float32)
    raise TypeError(f"constant {node.get_friendly_name()} of type {element_type.get_type_name()} cannot be a weight")


def _reshape(node: ov.Node, inputs: list[np.ndarray]) -> np.ndarray:
    target = node.get_output_partial_shape(0)
    return inputs[0].reshape(list(target.to_shape()))


# All arithmetic is done in float32, which is also what the plugin does: the half-precision types of the graph only say
# how the constants are stored.
_FOLD: dict[str, Callable[[ov.Node, list[np.ndarray]], np.ndarray]] = {
    "Convert": lambda node, inputs: inputs[0],
    "Subtract": lambda node, inputs: inputs[0] - inputs[1],
    "Add": lambda node, inputs: inputs[0] + inputs[1],
    "Multiply": lambda node, inputs: inputs[0] * inputs[1],
    "Divide": lambda node, inputs: inputs[0] / inputs[1],
    "Reshape": _reshape,
    "Transpose": lambda node, inputs: np.transpose(inputs[0], inputs[1].astype(np.int64)),
}


def is_constant(output: ov.Output) -> bool:
    """Whether `output` is computed from constants alone, by operations that fold() knows."""
    pending = [output.get_node()]
    while pending:
        node = pending.pop()
        if node.get_type_name() == "Constant":
            continue
        if node.get_type_name() not in _FOLD:
            return False
        pending += [value.get_node() for value in node.input_values()]
    return True


def fold(output: ov.Output) -> np.ndarray:
    """The float32 values of `output`, for which is_constant() holds."""
    node = output.get_node()
    if node.get_type_name() == "Constant":
        return _constant_values(node)
    inputs = [fold(value) for value in node.input_values()]
    return _FOLD[node.get_type_name()](node, inputs)


def _identity(output: ov.Output) -> tuple[str, int]:
    return output.get_node().get_friendly_name(), output.get_index()


def _input_axis(node: ov.Node, rank: int) -> int | None:
    """The axis of a weight that `node` sums over (MatMul) or returns as a row (Gather); None if it is not a weight's user."""
    if node.get_type_name() == "MatMul":
        return rank - 1 if node.get_attributes()["transpose_b"] else rank - 2
    axis = node.input_value(2).get_node()
    if axis.get_type_name() == "Constant" and int(np.asarray(axis.data).ravel()[0]) == 0:
        return rank - 1
    return None


def _find_weights(model: ov.Model) -> dict[tuple[str, int], tuple[ov.Output, int]]:
    """Each constant matrix that a MatMul multiplies by or that is looked up by row, once, with its input axis."""
    weights: dict[tuple[str, int], tuple[ov.Output, int]] = {}
    for node in model.get_ordered_ops():
        if node.get_type_name() not in ("MatMul", "Gather"):
            continue
        weight = node.input_value(1 if node.get_type_name() == "MatMul" else 0)
        rank = weight.get_partial_shape().rank
        if not rank.is_static or rank.get_length() != _MATRIX_RANK or not weight.get_element_type().is_real():
            continue
        axis = _input_axis(node, rank.get_length())
        if axis is None or not is_constant(weight):
            continue
        # A matrix that is both the embedding and the last projection is one constant and stays one, so the projection's
        # axis, which decides the speed, wins over the lookup's.
        if node.get_type_name() == "MatMul" or _identity(weight) not in weights:
            weights[_identity(weight)] = (weight, axis)
    return weights


def _already_int8(output: ov.Output, values: np.ndarray, scale_axis: int) -> bool:
    """Whether the constant behind `output` already is int8 with one scale per channel, so that nothing is to be won."""
    node = output.get_node()
    while node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    if node.get_type_name() != "Multiply":
        return False
    source, scale = node.input_value(0).get_node(), node.input_value(1).get_node()
    while source.get_type_name() == "Convert":
        source = source.input_value(0).get_node()
    expected = [1 if axis == scale_axis else size for axis, size in enumerate(values.shape)]
    return source.get_output_element_type(0) == ov.Type.i8 and list(scale.get_output_shape(0)) == expected


def _decompression(quantised: Quantised, name: str) -> ov.Output:
    values = ops.constant(quantised.values, name=name)
    scales = ops.constant(quantised.scales, name=f"{name}/scale")
    return ops.multiply(ops.convert(values, "f32"), scales, name=f"{name}/decompressed").output(0)


def replace_values(model: ov.Model, values: dict[str, np.ndarray]) -> None:
    """Puts plain float32 constants in the place of the weights that `values` names; for comparisons."""
    for output, _ in _find_weights(model).values():
        name = output.get_node().get_friendly_name()
        if name in values:
            new_output = ops.constant(values[name]).output(0)
            for target in output.get_target_inputs():
                target.replace_source_output(new_output)
    model.validate_nodes_and_infer_types()


def convert(model: ov.Model, replacement: Callable[[str, np.ndarray], np.ndarray] | None = None) -> Summary:
    """Rewrites every weight matrix of `model` in place and says how far the result is from the folded values.

    `replacement(name, folded)` may return better values than the graph holds, of the same shape, for instance read
    from the file that the graph was imported from.
    """
    matrices, weights = 0, 0
    error_squares, weight_squares = 0.0, 0.0
    for output, axis in _find_weights(model).values():
        values = fold(output)
        if _already_int8(output, values, axis):
            continue
        name = output.get_node().get_friendly_name()
        if replacement is not None:
            values = replacement(name, values)
        if not np.isfinite(values).all():
            raise ValueError(f"weight {name} holds values that are not numbers")
        quantised = quantise(values, axis)
        difference = quantised.values * quantised.scales - values
        error_squares += float(np.sum(np.square(difference), dtype=np.float64))
        weight_squares += float(np.sum(np.square(values), dtype=np.float64))
        matrices += 1
        weights += values.size
        new_output = _decompression(quantised, name)
        for target in output.get_target_inputs():
            target.replace_source_output(new_output)
    relative_error = (error_squares / weight_squares) ** 0.5 if weight_squares > 0 else 0.0
    model.validate_nodes_and_infer_types()
    return Summary(matrices, weights, relative_error)
