# SPDX-License-Identifier: Apache-2.0
"""Conversations through the program, `carousel evaluate`."""

import json
import os
import subprocess
import tempfile
from pathlib import Path

import numpy

PATIENCE_SECONDS = 3600


class Failure(Exception):
    """A run that ended without its results; the text is what it said."""


def task_lines(cases):
    """The cases as `carousel evaluate` reads them."""
    lines = []
    for case in cases:
        turns = [{"prompt": turn.prompt, "max_new_tokens": turn.max_new_tokens} for turn in case.turns]
        lines.append({"id": case.id, "raw": True, "turns": turns})
    return lines


class Program:
    def __init__(self, program, libraries, model):
        self._program = str(program)
        self._model = str(model)
        # A caller's variables would be flags.
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("CAROUSEL_")}
        self._environment["LD_LIBRARY_PATH"] = str(libraries)
        self._flags = None

    def knows(self, flag):
        if self._flags is None:
            self._flags = self._call(["evaluate", "--help"]).stdout
        return flag in self._flags

    def _call(self, arguments):
        return subprocess.run([self._program, *map(str, arguments)], env=self._environment, capture_output=True,
                              text=True, timeout=PATIENCE_SECONDS, check=False)

    def evaluate(self, tasks, flags, logits=None):
        """The lines of the result: one per turn, then the summary. `logits`: a file for the distributions."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "tasks.jsonl"
            path.write_text("".join(json.dumps(task) + "\n" for task in tasks), encoding="utf-8")
            arguments = ["evaluate", "--model", self._model, "--tasks", path, *flags]
            arguments += ["--logits", logits] if logits else []
            result = self._call(arguments)
        if result.returncode != 0:
            raise Failure((result.stderr.strip().splitlines() or [f"exit status {result.returncode}"])[-1])
        return [json.loads(line) for line in result.stdout.splitlines()]


def rows_of(path, vocabulary):
    """The distributions that `carousel evaluate --logits` wrote: [tokens, vocabulary], not read until used."""
    return numpy.memmap(path, dtype="<f4", mode="r").reshape(-1, vocabulary)
