# SPDX-License-Identifier: Apache-2.0
"""The forms in which a weight matrix is kept in an OpenVINO model.

int8   one scale per output channel, symmetric. It can be applied once, after the whole dot product, which on processors
       without int8 dot products is faster than unpacking 4-bit groups, although more bytes are read.
int4   unsigned, with a scale and a zero point for every group of 32 weights: half the memory.
f16    as it is, rounded to half precision.

Each is written in the way that the CPU plugin keeps compressed and executes as such.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
import openvino as ov
from openvino import opset13 as ops

KINDS = ("int8", "int4", "f16")
GROUP = 32
_INT8_MAX = 127
_INT4_MAX = 15


@dataclasses.dataclass
class Error:
    """How far the codes are from the values, summed over matrices."""

    matrices: int = 0
    weights: int = 0
    squares: float = 0.0
    error_squares: float = 0.0

    @property
    def relative(self) -> float:
        """Root mean square of the error over root mean square of the weights."""
        return (self.error_squares / self.squares) ** 0.5 if self.squares > 0 else 0.0

    def add(self, values: np.ndarray, read: np.ndarray) -> None:
        self.weights += values.size
        self.squares += float(np.sum(np.square(values, dtype=np.float64)))
        self.error_squares += float(np.sum(np.square(read - values, dtype=np.float64)))


def int8_rows(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 [rows, columns] and float32 [rows, 1]."""
    scales = np.max(np.abs(values), axis=1, keepdims=True).astype(np.float32) / np.float32(_INT8_MAX)
    # A row of zeros has no scale of its own; any will do, and 1 divides without a warning.
    scales = np.where(scales > 0, scales, np.float32(1))
    return np.clip(np.rint(values / scales), -_INT8_MAX, _INT8_MAX).astype(np.int8), scales


def int4_rows(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes 0 to 15 [rows, groups, GROUP], and float16 scales and zero points [rows, groups, 1].

    Zero points are not whole numbers: a file whose groups have offsets of their own would be moved by half a step.
    """
    groups = values.reshape(len(values), -1, GROUP)
    lowest = groups.min(axis=2, keepdims=True)
    scales = ((groups.max(axis=2, keepdims=True) - lowest) / _INT4_MAX).astype(np.float16)
    scales = np.where(scales > 0, scales, np.float16(1))
    wide = scales.astype(np.float32)
    zeros = (-lowest / wide).astype(np.float16)
    codes = np.clip(np.rint(groups / wide + zeros), 0, _INT4_MAX)
    return codes.astype(np.uint8), scales, zeros


def _int8(parts: Iterable[np.ndarray], shape: tuple[int, int], name: str, error: Error) -> ov.Output:
    codes, scales = np.empty(shape, np.int8), np.empty((shape[0], 1), np.float32)
    row = 0
    for values in parts:
        rows = slice(row, row + len(values))
        codes[rows], scales[rows] = int8_rows(values)
        error.add(values, codes[rows] * scales[rows])
        row += len(values)
    converted = ops.convert(ops.constant(codes, name=name), "f32")
    return ops.multiply(converted, ops.constant(scales, name=f"{name}/scale"), name=f"{name}/decompressed").output(0)


def _packed(codes: np.ndarray) -> ov.Node:
    """A u4 constant: two codes in a byte, the first in the low half."""
    flat = codes.ravel()
    packed = np.ascontiguousarray(flat[0::2] | (flat[1::2] << 4))
    # A copy: the constant outlives `packed`.
    return ov.op.Constant(ov.Tensor(packed, ov.Shape(codes.shape), ov.Type.u4), shared_memory=False)


def _int4(parts: Iterable[np.ndarray], shape: tuple[int, int], name: str, error: Error) -> ov.Output:
    groups = shape[1] // GROUP
    codes = np.empty((shape[0], groups, GROUP), np.uint8)
    scales = np.empty((shape[0], groups, 1), np.float16)
    zeros = np.empty((shape[0], groups, 1), np.float16)
    row = 0
    for values in parts:
        rows = slice(row, row + len(values))
        codes[rows], scales[rows], zeros[rows] = int4_rows(values)
        read = (codes[rows] - zeros[rows].astype(np.float32)) * scales[rows].astype(np.float32)
        error.add(values, read.reshape(values.shape))
        row += len(values)
    constant = _packed(codes)
    constant.set_friendly_name(name)
    centred = ops.subtract(ops.convert(constant, "f16"), ops.constant(zeros))
    scaled = ops.multiply(centred, ops.constant(scales))
    whole = ops.reshape(scaled, ops.constant(np.array(shape, np.int64)), False)
    return ops.convert(whole, "f32", name=f"{name}/decompressed").output(0)


def _f16(parts: Iterable[np.ndarray], shape: tuple[int, int], name: str, error: Error) -> ov.Output:
    halves = np.empty(shape, np.float16)
    row = 0
    for values in parts:
        rows = slice(row, row + len(values))
        with np.errstate(over="ignore"):
            halves[rows] = values
        error.add(values, halves[rows].astype(np.float32))
        row += len(values)
    if not np.isfinite(halves).all():
        raise ValueError(
            f"{name} holds weights beyond {np.finfo(np.float16).max:.0f}, which half precision cannot; use int8"
        )
    return ops.convert(ops.constant(halves, name=name), "f32", name=f"{name}/decompressed").output(0)


def encode(kind: str, parts: Iterable[np.ndarray], shape: tuple[int, int], name: str, error: Error) -> ov.Output:
    """The node that stands for a matrix [outputs, inputs], whose rows `parts` gives in order, float32, some at a time.

    int4 falls back to int8 where the row cannot be cut into groups, or not into an even number of codes.
    """
    error.matrices += 1
    if kind == "int4" and shape[1] % GROUP == 0 and shape[0] * shape[1] // GROUP % 2 == 0:
        return _int4(parts, shape, name, error)
    return (_f16 if kind == "f16" else _int8)(parts, shape, name, error)
