# SPDX-License-Identifier: Apache-2.0
"""What tests of the whole import share: a folder of their own, and the program's status and words."""

import io
import sys
import tempfile
import unittest
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

import import_gguf  # noqa: E402


class ImportCase(unittest.TestCase):
    def setUp(self):
        self._folder = tempfile.TemporaryDirectory()
        self.addCleanup(self._folder.cleanup)
        self.folder = Path(self._folder.name)
        self.gguf = self.folder / "tiny.gguf"
        self.output = self.folder / "models" / "tiny"

    def start(self, *arguments, gguf=None):
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            try:
                status = import_gguf.main(["--gguf", str(gguf or self.gguf), "--out", str(self.output), *arguments])
            except SystemExit as left:
                status = left.code
        return status, out.getvalue(), err.getvalue()

    def refuse(self, words, *arguments, status=1, gguf=None):
        found, _, err = self.start(*arguments, gguf=gguf)
        self.assertEqual(found, status, err)
        self.assertRegex(err, words)
        if status == 1:
            self.assertEqual(err.count("\n"), 1, err)
        self.assertFalse((self.output / "openvino_model.xml").exists())
        self.assertEqual([path.name for path in self.output.parent.glob(".importing-*")], [])
