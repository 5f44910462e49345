# SPDX-License-Identifier: Apache-2.0
"""A GGUF model's weights as the graph builder wants them: unpacked by the gguf package, in the rows' order of the graph."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator

import gguf_header
import matrix_codes
import numpy as np
import openvino as ov
from gguf import quants
from gguf.constants import GGMLQuantizationType

# Rows are unpacked some at a time: as float32 a vocabulary of 262,144 times 640 alone is two thirds of a gigabyte.
_VALUES_AT_ONCE = 4_000_000
# The matrices whose rows are looked up or make logits: 4 bits cost most there, and save least.
_NEVER_INT4 = ("token_embd.weight", "output.weight")


class WeightsError(gguf_header.GgufError):
    """A tensor cannot be used; the message is one line for the user."""


def neighbours_to_halves(rows: int, head_size: int, rotated: int) -> np.ndarray:
    """Which row of the file is row r of the graph, for queries and keys of models whose RoPE pairs neighbours.

    llama.cpp keeps such models with the pairs (2 i, 2 i + 1), the graph has (i, i + rotated / 2). A score is a sum over
    dimensions, so the same order for queries and keys changes nothing.
    """
    head = np.arange(head_size)
    head[:rotated] = np.arange(rotated).reshape(rotated // 2, 2).T.ravel()
    return (np.arange(0, rows, head_size)[:, None] + head).ravel()


def _mapped(path: str) -> np.ndarray:
    with open(path, "rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


class GgufWeights:
    """decoder_graph.Weights from the files that the header's tensors lie in. Matrices are coded once each."""

    def __init__(
        self,
        path: str | os.PathLike,
        header: gguf_header.GgufHeader,
        kind: str,
        row_orders: dict[str, np.ndarray],
    ) -> None:
        """`path`: what messages name. `row_orders`: for a tensor's name, which row of the file each row of the graph is; others stay as they are."""
        self.error = matrix_codes.Error()
        self._path = path
        self._tensors = header.tensors
        self._kind = kind
        self._row_orders = row_orders
        self._matrices: dict[str, ov.Output] = {}
        self.used: set[str] = set()
        self._files = {name: _mapped(name) for name in {tensor.path for tensor in header.tensors.values()}}

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def _tensor(self, name: str, dimensions: int) -> gguf_header.Tensor:
        tensor = self._tensors.get(name)
        if tensor is None:
            raise WeightsError(
                f"{self._path}: the tensor {name} is missing; the file is incomplete or of another architecture"
            )
        if len(tensor.shape) != dimensions:
            raise WeightsError(
                f"{tensor.path}: the tensor {name} has the shape {list(tensor.shape)}, but must have {dimensions} dimensions"
            )
        self.used.add(name)
        return tensor

    def _packed(self, tensor: gguf_header.Tensor) -> np.ndarray:
        return self._files[tensor.path][tensor.offset_bytes : tensor.offset_bytes + tensor.size_bytes]

    def _unpack(self, tensor: gguf_header.Tensor, packed: np.ndarray) -> np.ndarray:
        try:
            # What is no number is found below.
            with np.errstate(all="ignore"):
                values = quants.dequantize(packed, GGMLQuantizationType[tensor.type_name])
        except (NotImplementedError, KeyError) as error:
            raise WeightsError(
                f"{tensor.path}: the tensor {tensor.name} is packed as {tensor.type_name}, which the gguf package cannot unpack; "
                "use a file of another quantisation"
            ) from error
        values = np.asarray(values, np.float32)
        if not np.isfinite(values).all():
            raise WeightsError(
                f"{tensor.path}: the tensor {tensor.name} holds values that are not numbers; the file is damaged"
            )
        return values

    def rows(self, name: str) -> Iterator[np.ndarray]:
        """The matrix's rows in the graph's order, float32 [some, inputs] at a time."""
        tensor = self._tensor(name, 2)
        packed = self._packed(tensor).reshape(tensor.shape[0], -1)
        order = self._row_orders.get(name)
        step = max(1, _VALUES_AT_ONCE // tensor.shape[1])
        for begin in range(0, tensor.shape[0], step):
            part = packed[begin : begin + step] if order is None else packed[order[begin : begin + step]]
            yield self._unpack(tensor, part)

    def matrix(self, name: str) -> ov.Output:
        if name not in self._matrices:
            shape = self._tensor(name, 2).shape
            kind = "int8" if self._kind == "int4" and name in _NEVER_INT4 else self._kind
            try:
                self._matrices[name] = matrix_codes.encode(kind, self.rows(name), shape, name, self.error)
            except ValueError as error:
                raise WeightsError(f"{self._path}: {error}") from error
        return self._matrices[name]

    def vector(self, name: str) -> np.ndarray:
        tensor = self._tensor(name, 1)
        values = self._unpack(tensor, self._packed(tensor))
        order = self._row_orders.get(name)
        return values if order is None else values[order]
