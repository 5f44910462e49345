#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Imports a tiny random decoder of each architecture into OUT/ARCHITECTURE, for the C++ tests.

write_tiny_models.py OUT
"""

import contextlib
import io
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

import import_gguf  # noqa: E402
import tiny_gguf  # noqa: E402


def main():
    output = Path(sys.argv[1])
    output.mkdir(parents=True, exist_ok=True)
    for architecture in tiny_gguf.ARCHITECTURES:
        gguf = output / f"{architecture}.gguf"
        gguf.write_bytes(tiny_gguf.tiny(architecture))
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            arguments = ["--gguf", str(gguf), "--out", str(output / architecture), "--weights", "f16", "--force"]
            status = import_gguf.main(arguments)
        if status != 0:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
