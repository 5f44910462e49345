# SPDX-License-Identifier: Apache-2.0
"""Runs the program for tests, as a user would."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

BINARY = os.environ.get("CAROUSEL_BINARY", "carousel")
DEFAULT_MODEL = Path(__file__).resolve().parents[2] / "models" / "smollm2-135m-instruct"
MODEL = Path(os.environ.get("CAROUSEL_MODEL_DIR", DEFAULT_MODEL))
# A tiny decoder with random weights, whose tokens are bytes (tools/tests/write_tiny_models.py). It loads in a tenth of
# the time, and knows files, flags, signals and limits as well as the default model does.
TINY_MODEL = Path(os.environ.get("CAROUSEL_TINY_MODEL", "tiny_model"))
# Far beyond what anything takes, sanitizers included: a test that hangs is to end.
PATIENCE_SECONDS = 300


def environment(**variables: str) -> dict[str, str]:
    """The caller's environment without what would change the program's defaults."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CAROUSEL_")}
    return kept | variables


def command(*arguments: str | Path) -> list[str]:
    return [BINARY, *map(str, arguments)]


def run(*arguments: str | Path, stdin: bytes = b"", **variables: str) -> subprocess.CompletedProcess:
    """Runs to the end; output as bytes, since not all of it has to be text."""
    return subprocess.run(command(*arguments), input=stdin, capture_output=True,
                          env=environment(**variables), timeout=PATIENCE_SECONDS)


def prose(characters: int) -> str:
    """English prose that every Python has: the language reference's topics."""
    from pydoc_data.topics import topics
    return "\n\n".join(topics[name] for name in sorted(topics))[:characters]


def wait_for(condition, what: str):
    """The first true value of `condition()`."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise TimeoutError(what)


class ProgramTestCase(unittest.TestCase):
    """A test with a folder of its own."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def put(self, name: str, content: bytes | str) -> Path:
        path = self.folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def read_lines(self, path: Path) -> list[dict]:
        """The objects of a JSON lines file, which must hold whole lines only."""
        text = path.read_text(encoding="utf-8")
        self.assertTrue(text == "" or text.endswith("\n"), text[-200:])
        return [json.loads(line) for line in text.splitlines()]

    def assert_fails(self, result: subprocess.CompletedProcess, status: int, *parts: str) -> str:
        """One line on standard error that holds all `parts`, and nothing on standard output."""
        message = result.stderr.decode()
        self.assertEqual(result.returncode, status, message)
        self.assertEqual(result.stdout, b"")
        self.assertEqual(message.count("\n"), 1, message)
        self.assertTrue(message.startswith("carousel: "), message)
        for part in parts:
            self.assertIn(part, message)
        return message


class TinyModelTestCase(ProgramTestCase):
    """A test for which any model will do."""

    @classmethod
    def setUpClass(cls):
        if not (TINY_MODEL / "openvino_model.xml").exists():
            raise FileNotFoundError(f"no model in {TINY_MODEL}; ctest has tools/tests/write_tiny_models.py write it")


class ModelTestCase(ProgramTestCase):
    """A test that needs the default model, because it judges what is said. Loading it takes seconds."""

    @classmethod
    def setUpClass(cls):
        if not (MODEL / "openvino_model.xml").exists():
            raise unittest.SkipTest(f"no model in {MODEL}; ./run setup brings it")
