# SPDX-License-Identifier: Apache-2.0
"""Renders chat templates as the transformers library does, in Jinja's sandbox.

Templates come with models and are not trusted. The sandbox keeps them from Python's objects; limits on time and memory are
for the process that this runs in (prepare_model.py).
"""

from __future__ import annotations

import datetime
import json

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

LONGEST_REASON_CHARACTERS = 600

# A date in a reading: no template has this text, and the number says which layout it was asked for in.
DATE_MARK = "Xqzwdate{}x"

Message = tuple[str, str]  # role, content

_REFUSALS = (
    jinja2.exceptions.TemplateError,
    ArithmeticError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
)


class NotReducible(Exception):
    """The template cannot be written as a turn format; the message says why, in one sentence."""

    def __init__(self, reason: str) -> None:
        # A reason may quote what a template wrote, and that may be long.
        super().__init__(
            reason if len(reason) <= LONGEST_REASON_CHARACTERS else reason[:LONGEST_REASON_CHARACTERS] + "..."
        )


class _GenerationBlock(jinja2.ext.Extension):
    """{% generation %}: training code marks answers by it. It writes what is in it."""

    tags = {"generation"}

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(["name:endgeneration"], drop_needle=True)


class Template:
    """One template with its model's special tokens."""

    def __init__(self, source: str, special_tokens: dict[str, str]) -> None:
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _GenerationBlock]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = self._strftime_now
        self._special_tokens = special_tokens
        self._date: datetime.datetime | None = None
        self.layouts: list[str] = []  # [mark's number]: the layout that a date was asked for in
        try:
            tree = environment.parse(source)
            self.constants = _constants(tree)
            self._template = environment.from_string(tree)
        except jinja2.exceptions.TemplateError as error:
            raise NotReducible(f"the template is not valid Jinja: {_first_line(error)}") from error

    def _strftime_now(self, layout: str) -> str:
        if self._date is not None:
            return self._date.strftime(layout)
        if not isinstance(layout, str):
            raise TypeError("strftime_now: the layout is not a text")
        if layout not in self.layouts:
            self.layouts.append(layout)
        return DATE_MARK.format(self.layouts.index(layout))

    def render(
        self, messages: list[Message], generate: bool = True, date: datetime.datetime | None = None, **variables
    ) -> str:
        """The conversation's text. Raises NotReducible, with the template's own message, where it refuses.

        Without a date, a mark is in its place, by which it is found again.
        """
        self._date = date
        try:
            return self._render([{"role": role, "content": content} for role, content in messages], generate, variables)
        except _REFUSALS as error:
            raise NotReducible(f"the template refuses {describe(messages)}: {_first_line(error)}") from error

    def render_thought(self, user: str, thought: str, answer: str) -> str:
        """A conversation whose answer was thought about, under the names that templates know a thought by; "" if refused."""
        said = {"role": "assistant", "content": answer}
        self._date = None
        said |= {name: thought for name in ("reasoning_content", "reasoning", "thinking")}
        try:
            return self._render([{"role": "user", "content": user}, said], False, {})
        except _REFUSALS:
            return ""

    def _render(self, messages: list[dict], generate: bool, variables: dict) -> str:
        given = {"tools": None, "documents": None, "add_generation_prompt": generate, **self._special_tokens, **variables}
        return self._template.render(messages=messages, **given)


def describe(messages: list[Message]) -> str:
    """A conversation's shape in words, for a reason."""
    return f"the conversation ({', '.join(role for role, _ in messages)})"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def _constants(tree: jinja2.nodes.Node) -> list[str]:
    """The texts that a template may look for in a content, in the order of the source: all but those it only writes."""
    found: dict[str, None] = {}

    def visit(node: jinja2.nodes.Node, is_written: bool) -> None:
        if isinstance(node, jinja2.nodes.Const):
            if isinstance(node.value, str) and node.value.strip() and not is_written:
                found.setdefault(node.value)
            return
        written = isinstance(node, jinja2.nodes.Output) or (
            is_written and isinstance(node, (jinja2.nodes.Add, jinja2.nodes.Concat))
        )
        for child in node.iter_child_nodes():
            visit(child, written)

    visit(tree, False)
    return list(found)
