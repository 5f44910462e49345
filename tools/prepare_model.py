#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Reduces a model's chat template to a turn format: the text before and after each role's message.

A chat template is a Jinja program. Nearly all of them do no more than put fixed text around each message, and fixed text
is what a C++ program can apply without carrying a Jinja interpreter. So the template is run here, once, on conversations
with marked contents; the fixed pieces are read off; and then they are put to the proof: conversations of many shapes and
with odd contents are rendered both ways and have to agree to the last character. Where they do not, the template is not
reducible, and the file says so and why.

A conversation is written from the turn format like this:
    (begin if its first message is from the system, else begin_without_system)
    then for each message   roles[role].before + content + roles[role].after
    then, if an answer is to follow,   generation_prompt
where content is stripped of white space at both ends (Python's str.strip) if `trim` is true.

The template comes with the model, so it is not trusted: it runs in Jinja's sandbox, in a process of its own, with limits on
time and memory.
"""

from __future__ import annotations

import argparse
import datetime
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
FORMAT_VERSION = 1
OUTPUT_NAME = "turn_format.json"
SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")

TIME_LIMIT_SECONDS = 20
MEMORY_LIMIT_BYTES = 1 << 30
LONGEST_TEMPLATE_CHARACTERS = 1 << 20
LONGEST_REASON_CHARACTERS = 600
LONGEST_PROVEN_CONVERSATION = 7

# Contents that no template contains, to find the messages again in what it renders.
_MARKS = ("Xqzwa7", "Xqzwb7", "Xqzwc7", "Xqzwd7")
_PADDED = " \t\n Xqzwp7 \n\n "

_ODD_CONTENTS = (
    "",
    " ",
    "\n",
    "  two spaces before and after  ",
    "\n\nlines before and after\n\n",
    "\tone\n two\r\n  three",
    "'single' \"double\" `back` \\n \\",
    "{{ braces }} {% raw %} {# remark #} ${dollar} %s {0}",
    "<b>&amp; &lt;</b>",
    "Grüße, 世界, 🌍, e\u0301, \u00a0, \u2028",
    "<think>a thought</think> an answer",
    "system\nuser\nassistant",
)


class NotReducible(Exception):
    """The template cannot be written as a turn format; the message says why, in one sentence."""

    def __init__(self, reason: str) -> None:
        # A reason may quote what a template wrote, and that may be long.
        super().__init__(
            reason if len(reason) <= LONGEST_REASON_CHARACTERS else reason[:LONGEST_REASON_CHARACTERS] + "..."
        )


class ModelError(Exception):
    """A file of the model cannot be used; the message is one line for the user."""


# --- Rendering, the way the transformers library does it -----------------------------------------------------------


class Template:
    def __init__(self, source: str, special_tokens: dict[str, str]) -> None:
        import jinja2
        import jinja2.sandbox

        self._refusals = (
            jinja2.exceptions.TemplateError,
            ArithmeticError,
            LookupError,
            TypeError,
            ValueError,
            AttributeError,
        )
        self._date = datetime.datetime(2020, 2, 3, 4, 5, 6)
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = self._to_json
        environment.globals["raise_exception"] = self._raise_exception
        environment.globals["strftime_now"] = lambda layout: self._date.strftime(layout)
        self._special_tokens = special_tokens
        try:
            self._template = environment.from_string(source)
        except jinja2.exceptions.TemplateError as error:
            raise NotReducible(f"the template is not valid Jinja: {_first_line(error)}") from error

    @staticmethod
    def _to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    @staticmethod
    def _raise_exception(message):
        import jinja2

        raise jinja2.exceptions.TemplateError(message)

    def render(self, messages: list[tuple[str, str]], generate: bool = False) -> str:
        """The conversation's text. Raises NotReducible, with the template's own message, where it refuses."""
        try:
            return self._template.render(
                messages=[{"role": role, "content": content} for role, content in messages],
                tools=None,
                documents=None,
                add_generation_prompt=generate,
                **self._special_tokens,
            )
        except self._refusals as error:
            raise NotReducible(f"the template refuses {describe(messages, generate)}: {_first_line(error)}") from error

    def check_date_is_not_used(self, messages: list[tuple[str, str]]) -> None:
        rendered = self.render(messages)
        self._date = datetime.datetime(2031, 11, 24, 17, 38, 49)
        if self.render(messages) != rendered:
            raise NotReducible("the template writes today's date into the conversation, which fixed text cannot do")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def describe(messages: list[tuple[str, str]], generate: bool) -> str:
    """A conversation's shape in words, for a reason."""
    shape = ", ".join(role for role, _ in messages)
    return f"the conversation ({shape}{', answer to follow' if generate else ''})"


# --- Reading the pieces off ---------------------------------------------------------------------------------------


def _split(text: str, marks: tuple[str, ...]) -> list[str]:
    """The text before, between and after the marks, which have to appear once each and in this order."""
    parts = []
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found or mark in text:
            raise NotReducible(
                f"the template does not write each message's content once and in order: {mark!r} is lost"
            )
        parts.append(before)
    return parts + [text]


def _without_prefix(text: str, prefix: str, what: str) -> str:
    if not text.startswith(prefix):
        raise NotReducible(f"{what} is {text!r} in one place and begins with {prefix!r} in another")
    return text[len(prefix) :]


def _without_suffix(text: str, suffix: str, what: str) -> str:
    if not text.endswith(suffix):
        raise NotReducible(f"{what} is {text!r} in one place and ends with {suffix!r} in another")
    return text[: len(text) - len(suffix)]


def _role(before: str, after: str) -> dict[str, str]:
    return {"before": before, "after": after}


def _trims(template: Template) -> bool:
    rendered = template.render([("user", _PADDED)])
    if _PADDED in rendered:
        return False
    if _PADDED.strip() in rendered:
        return True
    raise NotReducible("the template changes a message's content")


def _read_pieces(template: Template) -> dict:
    """The turn format without a system role, as the template's renderings suggest it; nothing is proven yet."""
    first, second, third, _ = _MARKS
    user_1, assistant, user_2 = ("user", first), ("assistant", second), ("user", third)
    head, user_after = _split(template.render([user_1]), (first,))
    _, between, assistant_after = _split(template.render([user_1, assistant]), (first, second))
    _, _, before_next, _ = _split(template.render([user_1, assistant, user_2]), (first, second, third))
    assistant_before = _without_prefix(between, user_after, "the text between a user's message and the answer")
    user_before = _without_prefix(before_next, assistant_after, "the text between an answer and the next message")
    with_prompt = template.render([user_1], generate=True)
    return {
        "format": FORMAT_NAME,
        "version": FORMAT_VERSION,
        "reducible": True,
        "begin": "",
        "begin_without_system": _without_suffix(head, user_before, "the text before the first message"),
        "roles": {"user": _role(user_before, user_after), "assistant": _role(assistant_before, assistant_after)},
        "generation_prompt": _without_prefix(with_prompt, head + first + user_after, "the text before an answer"),
        "end_of_turn": "",
        "trim": _trims(template),
    }


def _add_system_role(template: Template, pieces: dict, bos_token: str) -> None:
    system, first, second, third = _MARKS
    user = pieces["roles"]["user"]
    head, between, _ = _split(template.render([("system", system), ("user", first)]), (system, first))
    after = _without_suffix(between, user["before"], "the text between the system's message and the user's")
    # Whether text at the very start belongs to the conversation or to the message shows only where the system speaks
    # again later, which some templates refuse. Then the token that begins every text is all that is taken off.
    before = head[len(bos_token) :] if head.startswith(bos_token) else head
    try:
        later = [("user", first), ("assistant", second), ("system", system), ("user", third)]
        parts = _split(template.render(later), (first, second, system, third))
        before_later = _without_prefix(parts[2], pieces["roles"]["assistant"]["after"], "the text after an answer")
        if head.endswith(before_later):
            before = before_later
    except NotReducible:
        pass
    pieces["begin"] = _without_suffix(head, before, "the text before the system's message")
    pieces["roles"] = {"system": _role(before, after), **pieces["roles"]}


def _end_of_turn(pieces: dict, eos_token: str) -> str:
    """The token that a model ends its answer with, out of the text that follows an answer."""
    after = pieces["roles"]["assistant"]["after"]
    if eos_token and eos_token in after:
        return eos_token
    token = re.search(r"<[^<>\s]+>", after)
    return token.group() if token else after.strip() or eos_token


# --- The proof ----------------------------------------------------------------------------------------------------


def apply(pieces: dict, messages: list[tuple[str, str]], generate: bool) -> str:
    """Writes a conversation from the turn format; the C++ side does the same."""
    starts_with_system = bool(messages) and messages[0][0] == "system"
    text = pieces["begin"] if starts_with_system else pieces["begin_without_system"]
    for role, content in messages:
        text += pieces["roles"][role]["before"]
        text += content.strip() if pieces["trim"] else content
        text += pieces["roles"][role]["after"]
    return text + (pieces["generation_prompt"] if generate else "")


def _conversations(pieces: dict, with_system: bool) -> list[list[tuple[str, str]]]:
    """Conversations of 1 to 7 turns; over all of them each role says each odd content at least once."""
    markers = [text for role in pieces["roles"].values() for text in role.values() if text]
    markers += [
        text for text in (pieces["generation_prompt"], pieces["end_of_turn"], pieces["begin_without_system"]) if text
    ]
    contents = [f"message {index}" for index in range(4)] + list(_ODD_CONTENTS) + markers
    conversations = []
    for turns in range(1, LONGEST_PROVEN_CONVERSATION + 1):
        for begin in range(len(contents)):
            spoken = [contents[(begin + 5 * turn) % len(contents)] for turn in range(turns + 1)]
            messages = [("system", spoken[-1])] if with_system else []
            messages += [(("user", "assistant")[turn % 2], spoken[turn]) for turn in range(turns)]
            conversations.append(messages)
    return conversations


def _prove(template: Template, pieces: dict, with_system: bool) -> None:
    for messages in _conversations(pieces, with_system):
        last_is_user = messages[-1][0] == "user"
        for generate in (False, True) if last_is_user else (False,):
            if template.render(messages, generate) != apply(pieces, messages, generate):
                contents = ", ".join(repr(content) for _, content in messages)
                raise NotReducible(
                    f"{describe(messages, generate)} with the contents {contents} renders to other text than the fixed "
                    "pieces around its messages"
                )


def reduce(source: str, special_tokens: dict[str, str]) -> dict:
    """The turn format of a template, proven, or the reason why there is none. Runs the template: see reduce_apart()."""
    try:
        template = Template(source, special_tokens)
        template.check_date_is_not_used([("user", _MARKS[0])])
        pieces = _read_pieces(template)
        pieces["end_of_turn"] = _end_of_turn(pieces, special_tokens.get("eos_token", ""))
        _prove(template, pieces, with_system=False)
    except NotReducible as reason:
        return not_reducible(str(reason))
    without_system = json.loads(json.dumps(pieces))
    try:
        template.check_date_is_not_used([("system", _MARKS[0]), ("user", _MARKS[1])])
        _add_system_role(template, pieces, special_tokens.get("bos_token", ""))
        _prove(template, pieces, with_system=True)
        _prove(template, pieces, with_system=False)
    except NotReducible as reason:
        # The conversations without a system message are proven, and are all that such a template can be used for.
        without_system["left_out"] = {"system": str(reason)}
        return without_system
    return pieces


def not_reducible(reason: str) -> dict:
    return {"format": FORMAT_NAME, "version": FORMAT_VERSION, "reducible": False, "reason": reason}


# --- A process of its own -----------------------------------------------------------------------------------------


def _limit_this_process(seconds: int) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _worker(seconds: int) -> int:
    """Reads {"template", "special_tokens"} from standard input, writes the turn format to standard output."""
    _limit_this_process(seconds)
    task = json.load(sys.stdin)
    try:
        result = reduce(task["template"], task["special_tokens"])
    except MemoryError:
        result = not_reducible(
            f"the template needs more than {MEMORY_LIMIT_BYTES >> 20} MiB to render a few short messages"
        )
    except RecursionError:
        result = not_reducible("the template calls itself without end")
    json.dump(result, sys.stdout)
    return 0


def reduce_apart(source: str, special_tokens: dict[str, str], seconds: int = TIME_LIMIT_SECONDS) -> dict:
    """reduce() in a process with limits, so that a hostile template costs some seconds and nothing else."""
    if len(source) > LONGEST_TEMPLATE_CHARACTERS:
        return not_reducible(
            f"the template has {len(source)} characters, more than the {LONGEST_TEMPLATE_CHARACTERS} that are tried"
        )
    command = [sys.executable, "-I", os.path.abspath(__file__), "--worker", str(seconds)]
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
        raise ModelError(f"{path}: cannot be read as JSON: {_first_line(error)}; mend or remove the file") from error
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
        raise ModelError(f"{path}: cannot be read as XML: {_first_line(error)}; import the model again") from error
    entry = root.find("./rt_info/chat_template")
    return None if entry is None else entry.get("value")


def find_template(model: Path) -> str | None:
    """The chat template of the model in folder `model`, from the first of its files that has one."""
    if (model / "chat_template.jinja").is_file():
        try:
            return (model / "chat_template.jinja").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"{model / 'chat_template.jinja'}: cannot be read: {_first_line(error)}") from error
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


def turn_format(model: Path) -> dict:
    template = find_template(model)
    if not template:
        return not_reducible("the model has no chat template; only raw text can be given to it")
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
    result = turn_format(model)
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
        return f"turn format: not reducible: {result['reason']}"
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
