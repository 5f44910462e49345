#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes a model's turn format, turn_format.json: its chat template reduced to fixed text (turn_format.py).

The template comes with the model, so it is not trusted: it runs in Jinja's sandbox, in a process of its own, with limits on
time and memory.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import xml.etree.ElementTree
from pathlib import Path

FORMAT_NAME = "carousel-turn-format"
# `./run` imports its models again when this changes: raise it when what is written changes.
FORMAT_VERSION = 2
OUTPUT_NAME = "turn_format.json"
SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")

TIME_LIMIT_SECONDS = 20
MEMORY_LIMIT_BYTES = 1 << 30
LONGEST_TEMPLATE_CHARACTERS = 1 << 20
# What helps where a template does not reduce.
MEND = (
    "write the marks yourself with carousel generate --raw, or put a template that reduces into the model's folder as "
    "chat_template.jinja and run tools/prepare_model.py on it"
)


class ModelError(Exception):
    """A file of the model cannot be used; the message is one line for the user."""


def not_reducible(reason: str) -> dict:
    return {"reducible": False, "reason": reason}


# --- A process of its own -----------------------------------------------------------------------------------------


def _limit_this_process(seconds: int) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _worker(seconds: int) -> int:
    """Reads {"template", "special_tokens"} from standard input, writes the turn format to standard output."""
    _limit_this_process(seconds)
    import turn_format

    task = json.load(sys.stdin)
    try:
        result = turn_format.reduce(task["template"], task["special_tokens"])
    except MemoryError:
        result = not_reducible(
            f"the template needs more than {MEMORY_LIMIT_BYTES >> 20} MiB to render a few short messages"
        )
    except RecursionError:
        result = not_reducible("the template calls itself without end")
    json.dump(result, sys.stdout)
    return 0


def reduce_apart(source: str, special_tokens: dict[str, str], seconds: int = TIME_LIMIT_SECONDS) -> dict:
    """turn_format.reduce() in a process with limits: a hostile template costs some seconds and nothing else."""
    if len(source) > LONGEST_TEMPLATE_CHARACTERS:
        return not_reducible(
            f"the template has {len(source)} characters, more than the {LONGEST_TEMPLATE_CHARACTERS} that are tried"
        )
    # Nothing of the user's environment is imported, but the modules beside this file are.
    command = [sys.executable, "-E", "-s", os.path.abspath(__file__), "--worker", str(seconds)]
    task = json.dumps({"template": source, "special_tokens": special_tokens})
    try:
        done = subprocess.run(command, input=task, capture_output=True, text=True, timeout=seconds + 5, check=False)
        result = json.loads(done.stdout) if done.returncode == 0 else None
    except subprocess.TimeoutExpired:
        return not_reducible(f"the template was still running after {seconds} seconds")
    except json.JSONDecodeError:
        result = None
    if result is None and done.returncode < 0:
        return not_reducible(
            f"rendering the template was stopped by the limits of {seconds} seconds and {MEMORY_LIMIT_BYTES >> 20} MiB"
        )
    if result is None:
        detail = (done.stderr.strip().splitlines() or ["no message"])[-1][:200]
        return not_reducible(f"the template could not be run: {detail}")
    return result


# --- The model's files --------------------------------------------------------------------------------------------


def _read_json(path: Path) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read as JSON: {error}; mend or remove the file") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: holds a {type(value).__name__}, but an object is expected; mend or remove the file")
    return value


def _template_of_config(config: dict) -> str | None:
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _template_of_tokenizer(path: Path) -> str | None:
    try:
        root = xml.etree.ElementTree.parse(path).getroot()
    except (OSError, xml.etree.ElementTree.ParseError) as error:
        raise ModelError(f"{path}: cannot be read as XML: {error}; import the model again") from error
    entry = root.find("./rt_info/chat_template")
    return None if entry is None else entry.get("value")


def find_template(model: Path) -> str | None:
    """The chat template of the model in folder `model`, from the first of its files that has one."""
    if (model / "chat_template.jinja").is_file():
        try:
            return (model / "chat_template.jinja").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"{model / 'chat_template.jinja'}: cannot be read: {error}") from error
    if (model / "tokenizer_config.json").is_file():
        template = _template_of_config(_read_json(model / "tokenizer_config.json"))
        if template is not None:
            return template
    if (model / "openvino_tokenizer.xml").is_file():
        return _template_of_tokenizer(model / "openvino_tokenizer.xml")
    return None


def find_special_tokens(model: Path) -> dict[str, str]:
    """The text of the tokens that templates may name, as far as the model's files give it."""
    tokens: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if not (model / name).is_file():
            continue
        for key, value in _read_json(model / name).items():
            text = value.get("content") if isinstance(value, dict) else value
            if key in SPECIAL_TOKENS and isinstance(text, str):
                tokens[key] = text
    return tokens


def turn_format_of(model: Path) -> dict:
    template = find_template(model)
    if not template:
        return not_reducible("the model has no chat template")
    tokens = find_special_tokens(model)
    # Jinja takes an unknown name for empty text, so without this check a token would be missing silently.
    for name in SPECIAL_TOKENS:
        if name not in tokens and re.search(rf"\b{name}\b", template):
            return not_reducible(
                f"the template uses {name}, but the model has no special_tokens_map.json or tokenizer_config.json with its text"
            )
    return reduce_apart(template, tokens)


def prepare(model: Path) -> dict:
    """Writes turn_format.json into the folder `model`, whole or not at all, and returns what it holds."""
    if not model.is_dir():
        raise ModelError(f"{model}: no such folder; give the folder of a model, with openvino_tokenizer.xml in it")
    result = {"format": FORMAT_NAME, "version": FORMAT_VERSION, **turn_format_of(model)}
    try:
        with tempfile.NamedTemporaryFile("w", dir=model, prefix=".turn_format", encoding="utf-8", delete=False) as file:
            json.dump(result, file, indent=2, ensure_ascii=False)
            file.write("\n")
        os.chmod(file.name, 0o644)
        os.replace(file.name, model / OUTPUT_NAME)
    except OSError as error:
        raise ModelError(f"{model / OUTPUT_NAME}: cannot be written: {error.strerror}") from error
    return result


def describe_result(result: dict) -> str:
    if not result["reducible"]:
        return f"turn format: not reducible: {result['reason']}; {MEND}"
    text = f"turn format: reducible, roles {', '.join(result['roles'])}"
    for role, reason in result.get("left_out", {}).items():
        text += f"; {role} left out: {reason}"
    return text


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--worker"]:
        return _worker(int(arguments[1]))
    parser = argparse.ArgumentParser(description="Reduces a model's chat template to turn_format.json.")
    parser.add_argument(
        "model", metavar="DIR", type=Path, help="folder of the model; turn_format.json is written there"
    )
    options = parser.parse_args(arguments)
    try:
        print(describe_result(prepare(options.model)))
    except ModelError as error:
        print(f"prepare_model: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
