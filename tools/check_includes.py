#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks that includes only point the allowed way between the rooms of the source tree.

    base <- rope, cache <- eviction, attention <- config <- engine <- measure <- openvino <- apps, python
    base <- text; measure, text <- answers <- api <- apps, python

A room knows the rooms below it and never the one beside it, so each can be read, tested and replaced on its own. Prints
each line that breaks this as FILE:LINE: reason, and exits with 1 if there is any.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

# What each folder of src/ may include besides itself and the public headers.
ROOMS = {
    "base": set(),
    "rope": {"base"},
    "cache": {"base", "rope"},
    "eviction": {"base", "rope", "cache"},
    "attention": {"base", "rope", "cache"},
    "config": {"base", "cache", "eviction"},
    "engine": {"base", "rope", "cache", "eviction", "attention", "config"},
    "measure": {"base", "rope", "cache", "eviction", "attention", "config", "engine"},
    "text": {"base"},
    "answers": {"base", "rope", "cache", "eviction", "attention", "config", "engine", "measure", "text"},
    "api": {"base", "rope", "cache", "eviction", "attention", "config", "engine", "measure", "text", "answers"},
    "openvino": {"base", "rope", "cache", "eviction", "attention", "config", "engine", "measure"},
}
# Public headers that speak of a room: whoever may not know the room may not know them either.
ROOM_OF_PUBLIC = {
    "eviction_config.h": "eviction",
    "recall_config.h": "config",
    "config.h": "config",
    "defaults.h": "config",
    "request.h": "config",
    "engine.h": "engine",
    "single_sequence_engine.h": "engine",
}
# Helpers for tests, which tests alone may use: this folder of src/, and whatever lies in tests/.
TEST_ROOM = "testing"
TEST_ROOT = "tests"
# Folders in which quoted includes are looked up, each with what may be included from there.
ROOTS = ("src", "include", "apps", "tests", "bench")
FOLDERS_CHECKED = ("src", "include", "apps", "tests", "bench", "python")
PUBLIC = "carousel"
# Libraries whose own manual asks for a quoted include.
QUOTED_LIBRARIES = {"hwy"}
# The only places that know the runtime. Its tests and benchmarks need it too.
RUNTIME = "openvino"
RUNTIME_FOLDERS = (("src", "openvino"), ("tests",), ("bench",))

_INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
_STANDARD_HEADER = re.compile(r"[a-z_0-9]+")


def is_test(path: Path) -> bool:
    return path.stem.endswith("_test") or path.parts[0] in (TEST_ROOT, "bench") or TEST_ROOM in path.parts


def _check_angle(path: Path, target: str) -> str | None:
    top = target.split("/")[0]
    if path.parts[:2] == ("include", PUBLIC) and not _STANDARD_HEADER.fullmatch(target):
        return (
            f"a public header includes <{target}>; public headers may include only {PUBLIC}/ and the standard library"
        )
    if top == RUNTIME and not any(path.parts[: len(folder)] == folder for folder in RUNTIME_FOLDERS):
        return f"<{target}> outside src/{RUNTIME}; only that folder may know the runtime"
    if top in ROOMS or top == PUBLIC:
        if top != RUNTIME:
            return f'<{target}> is our own header; write "{target}"'
    return None


def _is_test_helper(root: Path, target: str) -> bool:
    return target.split("/")[0] == TEST_ROOM or (root / TEST_ROOT / target).is_file()


def _check_room(path: Path, room: str, target: str, top: str) -> str | None:
    if top == PUBLIC:
        top = ROOM_OF_PUBLIC.get(target.partition("/")[2], room)
    if room == TEST_ROOM or top == room:
        return None
    if room not in ROOMS:
        return f"src/{room} is not a room that tools/check_includes.py knows; add it to ROOMS with what it may include"
    if top not in ROOMS[room]:
        allowed = ", ".join(sorted(ROOMS[room])) or "no other room"
        return f'"{target}" points the wrong way: src/{room} may include {allowed}'
    return None


def _check_quoted(root: Path, path: Path, target: str) -> str | None:
    top = target.split("/")[0]
    if top in QUOTED_LIBRARIES:
        return None
    if ".." in target.split("/") or "/" not in target:
        return f'"{target}" is not written from the root of its folder, as in "cache/block_table.h"'
    if not any((root / folder / target).is_file() for folder in ROOTS):
        return f'"{target}" is in none of {", ".join(ROOTS)}'
    if path.parts[:2] == ("include", PUBLIC) and top != PUBLIC:
        return (
            f'a public header includes "{target}"; public headers may include only {PUBLIC}/ and the standard library'
        )
    if _is_test_helper(root, target):
        return None if is_test(path) else f'"{target}" is for tests only'
    if path.parts[0] == "src" and len(path.parts) > 2:
        return _check_room(path, path.parts[1], target, top)
    return None


def check_file(root: Path, path: Path) -> list[str]:
    """The complaints about one file; `path` is relative to `root`."""
    complaints = []
    text = (root / path).read_text(encoding="utf-8")
    for number, line in enumerate(text.splitlines(), 1):
        include = _INCLUDE.match(line)
        if not include:
            continue
        if include[1] == "<":
            reason = _check_angle(path, include[2])
        else:
            reason = _check_quoted(root, path, include[2])
        if reason:
            complaints.append(f"{path}:{number}: {reason}")
    return complaints


def check(root: Path) -> tuple[int, list[str]]:
    """How many files were checked, and the complaints."""
    files = [
        file
        for folder in FOLDERS_CHECKED
        for file in sorted((root / folder).rglob("*"))
        if file.suffix in (".h", ".cc") and file.is_file()
    ]
    complaints = [complaint for file in files for complaint in check_file(root, file.relative_to(root))]
    return len(files), complaints


def main() -> int:
    files, complaints = check(Path(__file__).resolve().parent.parent)
    for complaint in complaints:
        print(complaint)
    print(f"includes: {files} files, {len(complaints)} wrong")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
