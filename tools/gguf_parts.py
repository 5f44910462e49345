# SPDX-License-Identifier: Apache-2.0
"""A GGUF model in several files, as llama.cpp's gguf-split writes them: read as one, where they lie.

Each part is a GGUF file of its own with some of the tensors; the first has the metadata. Which part of how many a file
is stands in its metadata (split.no, from 0, and split.count), and the parts' names differ only in their ends:
NAME-00001-of-00003.gguf, NAME-00002-of-00003.gguf and so on. Any of them may be given.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import gguf_header

# The file's numbers have 16 bits.
MOST_PARTS = 65535


def _ending(index: int, count: int) -> str:
    return f"-{index + 1:05d}-of-{count:05d}.gguf"


def _place(header: gguf_header.GgufHeader, path: str) -> tuple[int, int]:
    """Which part the file is, from 0, and of how many; a model in one file is part 0 of 1."""
    count = header.metadata.get("split.count", 1)
    if not gguf_header.is_whole(count) or not 0 <= count <= MOST_PARTS:
        raise gguf_header.GgufError(
            f"{path}: split.count is {gguf_header.shown(count)}, but must be a number of parts, at most {MOST_PARTS}"
        )
    if count <= 1:
        return 0, 1
    index = header.metadata.get("split.no")
    if not gguf_header.is_whole(index) or not 0 <= index < count:
        raise gguf_header.GgufError(
            f"{path}: split.no is {gguf_header.shown(index)}, but must be in [0, {count}), since split.count is {count}; "
            "the file is damaged"
        )
    return index, count


def _paths(given: Path, index: int, count: int) -> list[Path]:
    """Of all parts, which must be there. `given` is the path of part `index`."""
    ending = _ending(index, count)
    if not given.name.endswith(ending):
        raise gguf_header.GgufError(
            f"{given}: this is part {index + 1} of {count} by its metadata, and its name does not end with {ending}, by which "
            "the other parts would be found; give all parts the names that they were made with"
        )
    prefix = given.name.removesuffix(ending)
    paths = [given.with_name(prefix + _ending(other, count)) for other in range(count)]
    missing = [other for other, path in enumerate(paths) if not path.is_file()]
    if missing:
        more = f", and so are {len(missing) - 1} more" if len(missing) > 1 else ""
        raise gguf_header.GgufError(
            f"{given}: this is part {index + 1} of {count}, and part {missing[0] + 1} is missing{more}: "
            f"it should be {paths[missing[0]]}; all parts have to lie beside each other"
        )
    return paths


def _check_part(header: gguf_header.GgufHeader, path: Path, index: int, first: gguf_header.GgufHeader) -> None:
    """Whether the file at `path` is what its name says, part `index` of the model that `first` begins."""
    found, count = _place(header, str(path)), first.metadata.get("split.count")
    if found != (index, count):
        raise gguf_header.GgufError(
            f"{path}: by its name this is part {index + 1} of {count}, by its metadata part {found[0] + 1} of {found[1]}; "
            "the files do not belong together: fetch them again"
        )
    for key in ("general.architecture", "split.tensors.count"):
        value, wanted = header.metadata.get(key), first.metadata.get(key)
        if value is not None and value != wanted:
            raise gguf_header.GgufError(
                f"{path}: {key} is {gguf_header.shown(value)}, but in part 1 {gguf_header.shown(wanted)}; the files do not belong "
                "together: fetch them again"
            )


def _joined(headers: list[gguf_header.GgufHeader], given: Path) -> gguf_header.GgufHeader:
    tensors: dict[str, gguf_header.Tensor] = {}
    for header in headers:
        for name, tensor in header.tensors.items():
            if name in tensors:
                raise gguf_header.GgufError(
                    f"{tensor.path}: the tensor {name} is in {tensors[name].path} as well; the files do not belong together: "
                    "fetch them again"
                )
            tensors[name] = tensor
    wanted = headers[0].metadata.get("split.tensors.count", len(tensors))
    if wanted != len(tensors):
        raise gguf_header.GgufError(
            f"{given}: the {len(headers)} parts hold {len(tensors)} tensors, but split.tensors.count is "
            f"{gguf_header.shown(wanted)}; the files do not belong together: fetch them again"
        )
    return dataclasses.replace(headers[0], tensors=tensors)


def read(given: Path) -> tuple[list[Path], gguf_header.GgufHeader]:
    """The files of the model that `given` is, or is a part of, in order, and what they say together."""
    header = gguf_header.read(given)
    index, count = _place(header, str(given))
    if count == 1:
        return [given], header
    paths = _paths(given, index, count)
    headers = [header if other == index else gguf_header.read(path) for other, path in enumerate(paths)]
    for other, path in enumerate(paths):
        _check_part(headers[other], path, other, headers[0])
    return paths, _joined(headers, given)
