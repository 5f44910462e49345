#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks what every source file must have: a licence line at its top, UTF-8, and, in Python, sound syntax.

Looks at the files that git knows or would add. Prints each complaint as FILE: reason, and exits with 1 if there is any.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

LICENCE = "SPDX-License-Identifier: Apache-2.0"
SOURCE_SUFFIXES = {".h", ".cc", ".py", ".sh", ".cmake", ".txt", ".yml", ".yaml", ".toml"}
# Files without a suffix that are scripts or build files.
SOURCE_NAMES = {"run", ".clang-format", ".clang-tidy", ".gitignore", ".editorconfig"}
# A licence line stands first, or second after "#!".
FIRST_LINES = 2


def is_source(path: Path) -> bool:
    if path.suffix == ".txt":
        return path.name == "CMakeLists.txt" or path.parts[0] == "requirements"
    return path.suffix in SOURCE_SUFFIXES or path.name in SOURCE_NAMES


def listed_files(root: Path) -> list[Path]:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate"]
    output = subprocess.run(command, cwd=root, capture_output=True, check=True).stdout.decode()
    return [Path(name) for name in sorted(output.split("\0")) if name and (root / name).is_file()]


def check_file(root: Path, path: Path) -> str | None:
    """The complaint about one file; `path` is relative to `root`."""
    try:
        text = (root / path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        return f"not UTF-8 at byte {error.start}"
    if not any(LICENCE in line for line in text.splitlines()[:FIRST_LINES]):
        return f"no '{LICENCE}' in its first {FIRST_LINES} lines"
    if path.suffix == ".py":
        try:
            ast.parse(text, str(path))
        except SyntaxError as error:
            return f"line {error.lineno}: {error.msg}"
    return None


def main() -> int:
    root = Path(__file__).resolve().parent.parent
    files = [path for path in listed_files(root) if is_source(path)]
    complaints = [f"{path}: {reason}" for path in files if (reason := check_file(root, path))]
    for complaint in complaints:
        print(complaint)
    print(f"sources: {len(files)} files, {len(complaints)} wrong")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
