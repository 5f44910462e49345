# SPDX-License-Identifier: Apache-2.0
"""Finished cells, kept so that a run that was cut short goes on where it stopped."""

import hashlib
import json
import os
import subprocess


def digest(value):
    """A short name for anything that JSON can say."""
    text = value if isinstance(value, bytes) else json.dumps(value, sort_keys=True).encode()
    return hashlib.sha256(text).hexdigest()[:16]


def commit_of(root, program):
    """The commit, and of a changed tree the program's own digest as well: figures belong to what made them."""
    described = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"], cwd=root,
                               capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    if described.endswith("-dirty") or described == "unknown":
        described += "-" + digest(program.read_bytes())[:8]
    return described


class Store:
    """Lines of {"key", "settings", "result"}; half a last line, as a killed run leaves it, is dropped."""

    def __init__(self, path):
        self._path = path
        self._results = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue
                self._results[entry["key"]] = entry["result"]

    def get(self, settings):
        return self._results.get(digest(settings))

    def put(self, settings, result):
        key = digest(settings)
        begin = "" if not self._path.exists() or self._path.read_bytes()[-1:] in (b"", b"\n") else "\n"
        line = json.dumps({"key": key, "settings": settings, "result": result})
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(begin + line + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._results[key] = result
