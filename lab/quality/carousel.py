# SPDX-License-Identifier: Apache-2.0
"""Conversations through the program, `carousel evaluate`."""

import json
import os
import subprocess
import tempfile
from functools import cached_property
from pathlib import Path

import numpy

PATIENCE_SECONDS = 3600


class Failure(Exception):
    """A run that ended without its results; the text is what it said."""


def last_line(result):
    return (result.stderr.strip().splitlines() or [f"exit status {result.returncode}"])[-1]


def task_lines(cases):
    """The cases as `carousel evaluate` reads them."""
    lines = []
    for case in cases:
        turns = [{"prompt": turn.prompt} | ({"score": turn.said} if turn.said else
                                            {"max_new_tokens": turn.max_new_tokens}) for turn in case.turns]
        lines.append({"id": case.id, "raw": True, "turns": turns})
    return lines


class Program:
    def __init__(self, program, libraries, model, precision):
        self._program = str(program)
        self._precision = precision
        self._model = str(model)
        # A caller's variables would be flags.
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("CAROUSEL_")}
        self._environment["LD_LIBRARY_PATH"] = str(libraries)

    @cached_property
    def cache_bytes_per_token(self):
        """Of all layers, keys and values in f16."""
        result = self._call(["info", "--model", self._model, "--json", "-"])
        if result.returncode != 0:
            raise Failure(last_line(result))
        return json.loads(result.stdout.splitlines()[-1])["cache_bytes_per_token_f16"]

    def _call(self, arguments):
        return subprocess.run([self._program, *map(str, arguments)], env=self._environment, capture_output=True,
                              text=True, timeout=PATIENCE_SECONDS, check=False)

    def evaluate(self, tasks, flags, logits=None):
        """The lines of the result: one per turn, then the summary. `logits`: a file for the distributions."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "tasks.jsonl"
            path.write_text("".join(json.dumps(task) + "\n" for task in tasks), encoding="utf-8")
            arguments = ["evaluate", "--model", self._model, "--precision", self._precision, "--tasks", path, *flags]
            arguments += ["--logits", logits] if logits else []
            result = self._call(arguments)
        if result.returncode != 0:
            raise Failure(last_line(result))
        return [json.loads(line) for line in result.stdout.splitlines()]


def rows_of(path, vocabulary):
    """The distributions that `carousel evaluate --logits` wrote: [tokens, vocabulary], not read until used."""
    return numpy.memmap(path, dtype="<f4", mode="r").reshape(-1, vocabulary)
