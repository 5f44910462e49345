# SPDX-License-Identifier: Apache-2.0
"""Reads and checks what stands before the weights in a GGUF file: its metadata and its list of tensors.

The gguf package's own reader trusts the file: one that was cut short or damaged ends in whatever Python makes of it, or
in no memory. So everything that can be checked without touching the weights is checked here first, and each complaint
names what was read, the limit and what to do. The package gives the table of tensor types and unpacks them.

The format is described in ggml's docs/gguf.md. Versions 2 and 3, little-endian.
"""

from __future__ import annotations

import dataclasses
import math
import mmap
import os
import struct

from gguf.constants import GGML_QUANT_SIZES

MAGIC = b"GGUF"
SUPPORTED_VERSIONS = (2, 3)
MAX_DIMENSIONS = 4
DEFAULT_ALIGNMENT = 32
LONGEST_NAME = 200
LONGEST_SHOWN = 60

# Values by their type number in the file. Strings and arrays, which have a length, are read apart.
_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING = 8
_ARRAY = 9

# Tensor type -> (name, weights per block, bytes per block).
TENSOR_TYPES = {int(kind): (kind.name, *GGML_QUANT_SIZES[kind]) for kind in GGML_QUANT_SIZES}


class GgufError(Exception):
    """The file is not a GGUF file that can be imported; the message is one line for the user."""


def is_whole(value: object) -> bool:
    """Whether a metadata value is a whole number; Python counts true and false among them."""
    return isinstance(value, int) and not isinstance(value, bool)


def shown(value: object) -> str:
    """A metadata value for a message of one line: it may be a list of 100,000 words."""
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


@dataclasses.dataclass(frozen=True)
class Tensor:
    path: str  # of the file that holds it
    name: str
    shape: tuple[int, ...]  # outermost first, the way numpy counts (the file has it the other way round)
    type_name: str
    offset_bytes: int  # from the start of the file
    size_bytes: int


@dataclasses.dataclass(frozen=True)
class GgufHeader:
    version: int
    metadata: dict[str, object]
    tensors: dict[str, Tensor]

    def get(self, key: str, default: object = None) -> object:
        """The metadata value `key` of this architecture: get("block_count") reads "llama.block_count"."""
        return self.metadata.get(f"{self.metadata.get('general.architecture')}.{key}", default)


class _Cursor:
    """Reads little-endian values and never past the end."""

    def __init__(self, data: mmap.mmap | bytes, name: str) -> None:
        self.data = data
        self.name = name
        self.position = 0

    def remaining(self) -> int:
        return len(self.data) - self.position

    def take(self, size_bytes: int, what: str) -> bytes:
        if size_bytes > self.remaining():
            raise GgufError(
                f"{self.name}: truncated or damaged: {what} needs {size_bytes} bytes at offset {self.position}, "
                f"but the file ends at {len(self.data)}; copy or download the file again"
            )
        begin = self.position
        self.position += size_bytes
        return bytes(self.data[begin : self.position])

    def scalar(self, layout: str, what: str):
        return struct.unpack(layout, self.take(struct.calcsize(layout), what))[0]

    def count(self, what: str, smallest_entry_bytes: int) -> int:
        """A count of entries to come; one that cannot fit in the rest of the file is damage, not a reason to allocate."""
        count = self.scalar("<Q", what)
        if count * smallest_entry_bytes > self.remaining():
            raise GgufError(
                f"{self.name}: truncated or damaged: {what} is {count}, but only {self.remaining()} bytes follow; "
                "copy or download the file again"
            )
        return count

    def string(self, what: str) -> str:
        size_bytes = self.count(f"length of {what}", 1)
        return self.take(size_bytes, what).decode("utf-8", "replace")

    def name_of(self, what: str) -> str:
        """A key or a tensor's name, which later messages quote."""
        name = self.string(what)
        if not name.isprintable() or len(name) > LONGEST_NAME:
            raise GgufError(f"{self.name}: {what} is {name[:40]!r}..., which is no name; the file is damaged")
        return name

    def value(self, type_number: int, what: str, inside_array: bool = False):
        if type_number in _SCALARS:
            return self.scalar(_SCALARS[type_number], what)
        if type_number == _STRING:
            return self.string(what)
        if type_number == _ARRAY and not inside_array:
            return self.array(what)
        raise GgufError(
            f"{self.name}: {what} has the value type {type_number}, but a value is one of 0 to 12 and an array may not "
            "hold arrays; the file is damaged or of a newer format"
        )

    def array(self, what: str) -> list:
        item_type = self.scalar("<I", f"item type of {what}")
        smallest_bytes = struct.calcsize(_SCALARS[item_type]) if item_type in _SCALARS else 8
        count = self.count(f"number of items of {what}", smallest_bytes)
        if item_type in _SCALARS:
            layout = f"<{count}{_SCALARS[item_type][1]}"
            return list(struct.unpack(layout, self.take(struct.calcsize(layout), what)))
        return [self.value(item_type, what, inside_array=True) for _ in range(count)]


def _read_tensor(cursor: _Cursor, index: int) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.name_of(f"name of tensor {index}")
    dimensions = cursor.scalar("<I", f"number of dimensions of tensor {name!r}")
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise GgufError(
            f"{cursor.name}: tensor {name!r} has {dimensions} dimensions, but 1 to {MAX_DIMENSIONS} are possible; "
            "the file is damaged"
        )
    shape = tuple(cursor.scalar("<Q", f"shape of tensor {name!r}") for _ in range(dimensions))[::-1]
    type_number = cursor.scalar("<I", f"type of tensor {name!r}")
    if type_number not in TENSOR_TYPES:
        known = ", ".join(entry[0] for entry in TENSOR_TYPES.values())
        raise GgufError(f"{cursor.name}: tensor {name!r} has the type number {type_number}; known are {known}")
    return name, shape, type_number, cursor.scalar("<Q", f"offset of tensor {name!r}")


def _check_extent(cursor: _Cursor, data_begin: int, entry: tuple[str, tuple[int, ...], int, int]) -> Tensor:
    name, shape, type_number, offset_bytes = entry
    type_name, block_weights, block_bytes = TENSOR_TYPES[type_number]
    if shape[-1] == 0 or shape[-1] % block_weights != 0:
        raise GgufError(
            f"{cursor.name}: tensor {name!r} has rows of {shape[-1]} weights, but {type_name} packs {block_weights} "
            "together; the file is damaged"
        )
    size_bytes = math.prod(shape) // block_weights * block_bytes
    end = data_begin + offset_bytes + size_bytes
    if end > len(cursor.data):
        raise GgufError(
            f"{cursor.name}: truncated: tensor {name!r} ends at byte {end}, but the file at {len(cursor.data)}; "
            "copy or download the file again"
        )
    return Tensor(cursor.name, name, shape, type_name, data_begin + offset_bytes, size_bytes)


def _check_version(version: int, name: str) -> None:
    if version in SUPPORTED_VERSIONS:
        return
    if struct.unpack(">I", struct.pack("<I", version))[0] in SUPPORTED_VERSIONS:
        raise GgufError(
            f"{name}: the file is big-endian, and only little-endian files can be read; give the file for x86, or "
            "turn this one with llama.cpp's gguf_convert_endian.py"
        )
    raise GgufError(
        f"{name}: GGUF version {version} is not supported, only {SUPPORTED_VERSIONS[0]} and "
        f"{SUPPORTED_VERSIONS[1]}; convert the file again with a current llama.cpp"
    )


def _read_metadata(cursor: _Cursor, count: int) -> dict[str, object]:
    metadata: dict[str, object] = {}
    for index in range(count):
        key = cursor.name_of(f"key of metadata entry {index}")
        if key in metadata:
            raise GgufError(f"{cursor.name}: the metadata entry {key} is there twice; the file is damaged")
        metadata[key] = cursor.value(cursor.scalar("<I", f"type of {key}"), key)
    return metadata


def parse(data: mmap.mmap | bytes, name: str) -> GgufHeader:
    """Reads the header from `data`, the whole file. Raises GgufError on anything that is not sound."""
    if bytes(data[:4]) != MAGIC:
        raise GgufError(
            f"{name}: not a GGUF file: it begins with {bytes(data[:4])!r}, a GGUF file with {MAGIC!r}; "
            "give the path of a .gguf file"
        )
    cursor = _Cursor(data, name)
    cursor.take(4, "magic")
    version = cursor.scalar("<I", "version")
    _check_version(version, name)
    tensor_count = cursor.count("number of tensors", 24)
    metadata_count = cursor.count("number of metadata entries", 13)
    metadata = _read_metadata(cursor, metadata_count)
    entries = [_read_tensor(cursor, index) for index in range(tensor_count)]

    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not is_whole(alignment) or alignment <= 0 or alignment % 8 != 0:
        raise GgufError(f"{name}: general.alignment is {shown(alignment)}, but must be a positive multiple of 8")
    data_begin = -(-cursor.position // alignment) * alignment
    tensors = {}
    for entry in entries:
        if entry[0] in tensors:
            raise GgufError(f"{name}: tensor {entry[0]!r} is listed twice; the file is damaged")
        tensors[entry[0]] = _check_extent(cursor, data_begin, entry)
    return GgufHeader(version, metadata, tensors)


def read(path: str | os.PathLike) -> GgufHeader:
    """Reads and checks the header of the file at `path`."""
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise GgufError(f"{path}: empty file; give the path of a .gguf file")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return parse(data, str(path))
    except OSError as error:
        raise GgufError(f"{path}: cannot be read: {error.strerror}") from error
