#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Imports a tiny random decoder of each architecture into OUT/ARCHITECTURE, and into OUT/program one with a window that
fits the program's defaults, for the tests of C++ and of the program.

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
    files = {architecture: tiny_gguf.tiny(architecture) for architecture in tiny_gguf.ARCHITECTURES}
    files["program"] = tiny_gguf.tiny("llama", llama__context_length=8192)
    for name, content in files.items():
        gguf = output / f"{name}.gguf"
        gguf.write_bytes(content)
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            arguments = ["--gguf", str(gguf), "--out", str(output / name), "--weights", "f16", "--force"]
            status = import_gguf.main(arguments)
        if status != 0:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
