# SPDX-License-Identifier: Apache-2.0
"""The float values of a GGUF file's weight matrices, and which of them stands behind a matrix of the imported model.

Why not take the imported model's values: openvino-genai's reader stores the offset of each group of 4-bit weights as an
integer zero point. In the file it is a half-precision number, so every group is moved by up to half a step. On the
default model that changes each weight matrix by 9 % and costs a quarter of the perplexity. Values read from the file
itself have no such error.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator

import gguf_header
import numpy as np

# Rows of a matrix that are compared before all of it is. Spread over the matrix, so that two matrices that begin alike
# are still told apart.
_PROBE_ROWS = 16
# The rounding of zero points moves a 4-bit matrix by about a tenth; two different matrices differ by more than their
# own size (1.4 times, if they are independent).
_LARGEST_RELATIVE_DISTANCE = 0.35


def _half(raw: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(raw).view(np.float16).astype(np.float32)


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """[.., n] bytes to [.., 2 n] values: all the low halves first, then all the high halves."""
    return np.concatenate([packed & 0x0F, packed >> 4], axis=-1)


def _fifth_bits(packed: np.ndarray) -> np.ndarray:
    """[blocks, 4] bytes to [blocks, 32]: bit j, already in its place as the fifth bit of weight j."""
    return np.unpackbits(np.ascontiguousarray(packed), axis=-1, bitorder="little").astype(np.uint8) << 4


def _q4_0(blocks: np.ndarray) -> np.ndarray:
    return (_nibbles(blocks[:, 2:]).astype(np.float32) - 8) * _half(blocks[:, :2])


def _q4_1(blocks: np.ndarray) -> np.ndarray:
    return _nibbles(blocks[:, 4:]) * _half(blocks[:, :2]) + _half(blocks[:, 2:4])


def _q5_0(blocks: np.ndarray) -> np.ndarray:
    codes = _nibbles(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6])
    return (codes.astype(np.float32) - 16) * _half(blocks[:, :2])


def _q5_1(blocks: np.ndarray) -> np.ndarray:
    codes = _nibbles(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])
    return codes * _half(blocks[:, :2]) + _half(blocks[:, 2:4])


def _q8_0(blocks: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(blocks[:, 2:]).view(np.int8) * _half(blocks[:, :2])


def _k_scales(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The eight 6-bit scales and the eight 6-bit minima of Q4_K and Q5_K out of their 12 bytes, each [blocks, 8]."""
    low, middle, high = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([low & 63, (high & 15) | (low >> 6 << 4)], axis=-1)
    minima = np.concatenate([middle & 63, (high >> 4) | (middle >> 6 << 4)], axis=-1)
    return scales.astype(np.float32), minima.astype(np.float32)


def _k_offset(blocks: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Q4_K and Q5_K from their codes [blocks, 8, 32]: each 32 weights have a scale and a minimum, in units of the block's."""
    scales, minima = _k_scales(blocks[:, 4:16])
    scales, minima = scales * _half(blocks[:, 0:2]), minima * _half(blocks[:, 2:4])
    return (codes * scales[..., None] - minima[..., None]).reshape(len(blocks), -1)


def _q4_k(blocks: np.ndarray) -> np.ndarray:
    # Every 32 bytes hold two groups: the low halves one, the high halves the next.
    codes = _nibbles(blocks[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    return _k_offset(blocks, codes)


def _q5_k(blocks: np.ndarray) -> np.ndarray:
    codes = _nibbles(blocks[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    # Byte j holds the fifth bit of weight j of all eight groups, group g in bit g.
    fifth = (blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None]) & 1
    return _k_offset(blocks, codes | (fifth << 4))


def _q6_k(blocks: np.ndarray) -> np.ndarray:
    low = _nibbles(blocks[:, 0:128].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
    # Byte j of each half holds the upper two bits of weight j of its four groups.
    high = (blocks[:, 128:192].reshape(-1, 2, 1, 32) >> np.arange(0, 8, 2, dtype=np.uint8)[:, None]) & 3
    codes = (low | (high << 4)).astype(np.float32) - 32
    scales = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8) * _half(blocks[:, 208:210])
    return (codes.reshape(-1, 16, 16) * scales[..., None]).reshape(len(blocks), -1)


def _bf16(blocks: np.ndarray) -> np.ndarray:
    return (np.ascontiguousarray(blocks).view(np.uint16).astype(np.uint32) << 16).view(np.float32)


_UNPACK: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "F32": lambda blocks: np.ascontiguousarray(blocks).view(np.float32),
    "F16": _half,
    "BF16": _bf16,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}


def unpack(raw: np.ndarray, type_name: str, columns: int) -> np.ndarray:
    """Rows of `columns` weights from their bytes, float32 [rows, columns]. KeyError for a type that is not known here."""
    block_bytes = next(size for name, _, size in gguf_header.TENSOR_TYPES.values() if name == type_name)
    return _UNPACK[type_name](raw.reshape(-1, block_bytes)).astype(np.float32, copy=False).reshape(-1, columns)


def _halves_order(rows: int, head_size: int) -> np.ndarray:
    """Where row r of a query or key projection with halves pairing stands in a file with neighbours pairing.

    llama.cpp's converter brings the rows of the llama architecture into neighbours pairing, and openvino-genai's reader
    brings them back.
    """
    return np.arange(rows).reshape(rows // head_size, head_size // 2, 2).swapaxes(1, 2).ravel()


class GgufWeights:
    """Matrices of one GGUF file, matched by value with those of the model that was imported from it."""

    def __init__(self, path: str | os.PathLike, header: gguf_header.GgufHeader, head_size: int) -> None:
        with open(path, "rb") as file:
            self._bytes = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
        self._head_size = head_size
        self._unmatched = {
            tensor.name: tensor
            for tensor in header.tensors.values()
            if len(tensor.shape) == 2 and tensor.type_name in _UNPACK
        }

    def _rows(self, tensor: gguf_header.Tensor, rows: np.ndarray) -> np.ndarray:
        begin, end = tensor.offset_bytes, tensor.offset_bytes + tensor.size_bytes
        packed = self._bytes[begin:end].reshape(tensor.shape[0], -1)
        return unpack(packed[rows], tensor.type_name, tensor.shape[1])

    def _orders(self, tensor: gguf_header.Tensor) -> Iterator[np.ndarray]:
        rows = tensor.shape[0]
        yield np.arange(rows)
        if rows % self._head_size == 0 and self._head_size % 2 == 0:
            yield _halves_order(rows, self._head_size)

    def values(self, imported: np.ndarray) -> np.ndarray | None:
        """The file's values for the matrix `imported`; None when no matrix of the file is near it."""
        probe = np.unique(np.linspace(0, len(imported) - 1, _PROBE_ROWS).astype(int))
        size = np.linalg.norm(imported[probe])
        nearest = (_LARGEST_RELATIVE_DISTANCE, "", np.empty(0, int))
        for tensor in self._unmatched.values():
            if tensor.shape != imported.shape:
                continue
            for order in self._orders(tensor):
                distance = np.linalg.norm(self._rows(tensor, order[probe]) - imported[probe])
                if distance < nearest[0] * size:
                    nearest = (distance / size, tensor.name, order)
        if not nearest[1]:
            return None
        found = self._rows(self._unmatched[nearest[1]], nearest[2])
        # The rows compared were a sample: the whole of it has to be near as well.
        if np.linalg.norm(found - imported) > _LARGEST_RELATIVE_DISTANCE * np.linalg.norm(imported):
            return None
        del self._unmatched[nearest[1]]
        return found
