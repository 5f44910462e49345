# SPDX-License-Identifier: Apache-2.0
"""Reduces a chat template to a turn format: the fixed text around what is said in a conversation.

A chat template is a Jinja program. Where chat is, nearly all of them do no more than put fixed text around each message: the
conversation ends with a user's message, an answer is to come, and what was said before is in the cache and is never
rendered again. How a template would write past answers (without their thoughts, say) does not matter; what it writes in
front of the first answer, and between the end of an answer and the beginning of the next one, does.

The pieces are read off conversations with marked contents. Then they are put to the proof: conversations of many lengths
and with odd contents are rendered, and wherever chat is they have to agree to the last character. Where they do not, the
template is not reducible, and the result says why.

A conversation is written from the turn format like this:
    roles.system.before + system + roles.system.after, or begin_without_system
    then for each turn     roles.user.before + user + roles.user.after + generation_prompt, the answer,
                           and in front of the next turn   roles.assistant.after
A system message that opens_user_turn has the first roles.user.before in its after. Contents are stripped of white space
(Python's str.strip) at the sides that trim names. A content is refused if it is blank and the role's blank is false, or if
it holds one of the role's refused words, in small letters or capitals: the template would do something else with it.
Pieces in front of the first turn are a text, or a list of texts and {"date": LAYOUT}, the date at the conversation's
beginning.
"""

from __future__ import annotations

import datetime
import re

from chat_template import DATE_MARK, Message, NotReducible, Template, describe

# What a date may be made of: the program that fills it in knows these.
DATE_DIRECTIVES = "aAbBdHIjmMpSyY%"

MOST_REFUSED_WORDS = 32
PROVEN_TURNS = (1, 2, 3, 5)  # messages of the user in a conversation

# Contents that no template contains, to find the messages again in what it renders.
_SYSTEM, _FIRST, _ANSWER, _SECOND = ("Xqzwa7", "Xqzwb7", "Xqzwc7", "Xqzwd7")
_ANSWERS = tuple(f"answer number {index}" for index in range(1, PROVEN_TURNS[-1]))
_PAD_LEFT, _PAD_RIGHT = " \t\n ", " \n\n "
_BLANKS = ("", " ", "\n", " \t\n ")
_DATES = (datetime.datetime(2020, 2, 3, 4, 5, 6), datetime.datetime(2031, 11, 24, 17, 38, 49))

_ODD_CONTENTS = (
    "  two spaces before and after  ",
    "\n\nlines before and after\n\n",
    "\tone\n two\r\n  three",
    "\u00a0\u3000wide spaces before and after\u2003\u0085",
    "'single' \"double\" `back` \\n \\",
    "{{ braces }} {% raw %} {# remark #} ${dollar} %s {0}",
    "<b>&amp; &lt;</b>",
    "Grüße, 世界, 🌍, e\u0301, \u00a0, \u2028",
    "<think>a thought</think> an answer",
    "system\nuser\nassistant",
    "42",
    "None",
    '{"role": "user", "content": "JSON"}',
    "[1, 2]",
    "a long text " * 300,
)


# --- Writing a conversation from a turn format ---------------------------------------------------------------------


def _fill(piece: str | list, date: datetime.datetime) -> str:
    if isinstance(piece, str):
        return piece
    return "".join(part if isinstance(part, str) else date.strftime(part["date"]) for part in piece)


def trimmed(role: dict, content: str) -> str:
    if role["trim"] in ("left", "both"):
        content = content.lstrip()
    return content.rstrip() if role["trim"] in ("right", "both") else content


def refuses(role: dict, content: str) -> bool:
    """Whether the template does something else with this content than to write it."""
    if not content.strip():
        return not role["blank"]
    # Bytes, whose small letters are ASCII's alone, as on the C++ side.
    return any(word.encode().lower() in content.encode().lower() for word in role["refused_words"])


def beginning(pieces: dict, system: str | None, date: datetime.datetime) -> str:
    """What stands in front of the first user's message."""
    user = pieces["roles"]["user"]
    if system is None:
        return _fill(pieces["begin_without_system"], date) + user["before"]
    role = pieces["roles"]["system"]
    text = _fill(role["before"], date) + trimmed(role, system) + _fill(role["after"], date)
    return text if role["opens_user_turn"] else text + user["before"]


def first_turn(pieces: dict, system: str | None, user: str, date: datetime.datetime) -> str:
    """The conversation up to where the first answer begins; the C++ side does the same."""
    role = pieces["roles"]["user"]
    return beginning(pieces, system, date) + trimmed(role, user) + role["after"] + pieces["generation_prompt"]


def next_turn(pieces: dict, user: str) -> str:
    """What follows an answer, up to where the next one begins; the C++ side does the same."""
    role = pieces["roles"]["user"]
    text = pieces["roles"]["assistant"]["after"] + role["before"] + trimmed(role, user) + role["after"]
    return text + pieces["generation_prompt"]


# --- Reading the pieces off ---------------------------------------------------------------------------------------


def _split(text: str, marks: tuple[str, ...]) -> list[str]:
    """The text before, between and after the marks, which have to appear once each and in this order."""
    parts = []
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found or mark in text:
            raise NotReducible("the template does not write each message's content once and in order")
        parts.append(before)
    return parts + [text]


def _common_suffix(one: str, other: str) -> str:
    length = 0
    while length < min(len(one), len(other)) and one[-1 - length] == other[-1 - length]:
        length += 1
    return one[len(one) - length :]


def _last_answer_after(template: Template) -> str:
    """What follows an answer that is the last message; a hint only, since chat is never there."""
    try:
        return _split(template.render([("user", _FIRST), ("assistant", _ANSWER)], generate=False), (_FIRST, _ANSWER))[2]
    except NotReducible:
        return ""


def _end_mark(text: str, eos_token: str) -> str:
    """What looks like a token that ends a turn, where the text begins with one; white space may precede it."""
    text = text.lstrip()
    if eos_token and text.startswith(eos_token):
        return eos_token
    token = re.match(r"<[^<>\s]+>", text)
    return token.group() if token else ""


def _assistant_after(between: str, head: str, hint: str, eos_token: str) -> str:
    """That part of the text between an answer and the next message which ends the answer.

    The rest is in front of every message of the user, and so is at the end of what precedes the first one. Where the text is
    cut makes no difference to a conversation, only to what counts as its beginning.
    """
    mark = _end_mark(between, eos_token)
    to_mark = between[: between.find(mark) + len(mark)]
    spaces = re.match(r"\s*", between[len(to_mark) :]).group()
    for after in (hint, to_mark + spaces, to_mark, ""):
        if between.startswith(after) and head.endswith(between[len(after) :]):
            return after
    return between[: len(between) - len(_common_suffix(between, head))]


def _with_dates(text: str, layouts: list[str]) -> str | list:
    """The text with marks of dates replaced by what they stand for."""
    parts: list = [text]
    for index, layout in enumerate(layouts):
        mark = DATE_MARK.format(index)
        if mark in text and not re.fullmatch(f"([^%\0]|%[{DATE_DIRECTIVES}])*", layout):
            known = " ".join(f"%{letter}" for letter in DATE_DIRECTIVES)
            raise NotReducible(f"the template writes a date as {layout!r}, of which only {known} can be filled in")
        pieces = [part.split(mark) if isinstance(part, str) else [part] for part in parts]
        parts = []
        for piece in pieces:
            for number, part in enumerate(piece):
                parts += [{"date": layout}] if number > 0 else []
                parts += [part] if part else []
    return text if parts in ([text], []) else parts


def _new_role(before: str | list, after: str | list) -> dict:
    return {"before": before, "after": after, "trim": "none", "blank": True, "refused_words": []}


def _read_pieces(template: Template, eos_token: str) -> dict:
    """The turn format without a system role, as the template's renderings suggest it; nothing is proven yet."""
    messages = [("user", _FIRST), ("assistant", _ANSWER), ("user", _SECOND)]
    head, header, between, tail = _split(template.render(messages), (_FIRST, _ANSWER, _SECOND))
    after = _assistant_after(between, head, _last_answer_after(template), eos_token)
    user_before = between[len(after) :]
    if not head.endswith(user_before):
        raise NotReducible(
            f"the text before the user's first message ends with {head[-80:]!r}, and before later ones with {user_before!r}"
        )
    try:
        user_after = _split(template.render(messages[:1], generate=False), (_FIRST,))[1]
    except NotReducible:
        user_after = ""
    if not tail.startswith(user_after) or not header.startswith(user_after):
        user_after = ""
    if DATE_MARK[:8] in between + tail:
        raise NotReducible("the template writes the date into every turn, where it would have to change")
    return {
        "reducible": True,
        "begin_without_system": _with_dates(head[: len(head) - len(user_before)], template.layouts),
        "roles": {"user": _new_role(user_before, user_after), "assistant": {"after": after}},
        "generation_prompt": tail[len(user_after) :],
        "end_of_turn": _end_of_turn(template, after or between, eos_token),
    }


def _add_system_role(template: Template, pieces: dict) -> None:
    user = pieces["roles"]["user"]
    messages = [("system", _SYSTEM), ("user", _FIRST)]
    before, between, _ = _split(template.render(messages), (_SYSTEM, _FIRST))
    opens_user_turn = not between.endswith(user["before"])
    after = between if opens_user_turn else between[: len(between) - len(user["before"])]
    role = _new_role(_with_dates(before, template.layouts), _with_dates(after, template.layouts))
    pieces["roles"] = {"system": {**role, "opens_user_turn": opens_user_turn}, **pieces["roles"]}


def _end_of_turn(template: Template, after: str, eos_token: str) -> str:
    """The mark that a model ends its answer with: what follows an answer, unless it ends parts of an answer as well."""
    thought = template.render_thought(_FIRST, _SECOND, _ANSWER)
    _, _, inside = thought.partition(_SECOND)
    inside = inside.partition(_ANSWER)[0]
    # Some templates write another mark after the very last answer than after those that were replied to.
    for text in (after, _last_answer_after(template)):
        mark = _end_mark(text, eos_token)
        if mark and mark not in inside:
            return mark
    if _end_mark(after, eos_token) and any(mark not in inside for mark in re.findall(r"<[^<>\s]+>", after)):
        raise NotReducible(
            f"the template closes an answer by {after!r}, of which the model writes a part and the last mark alone ends a turn"
        )
    return ""


# --- What a content may hold --------------------------------------------------------------------------------------


def _conversations_with(role: str, content: str) -> list[list[Message]]:
    """Conversations in which `role` says `content`."""
    if role == "system":
        return [[("system", content), ("user", "one")]]
    return [[("user", content)], [("user", "one"), ("assistant", _ANSWERS[0]), ("user", content)]]


def _agree(template: Template, pieces: dict, role: str, content: str) -> bool:
    try:
        return all(_difference(template, pieces, messages) is None for messages in _conversations_with(role, content))
    except NotReducible:
        return False


def _find_trim(template: Template, pieces: dict, name: str) -> None:
    for date in _DATES:
        for messages in _conversations_with(name, "words"):
            _check(template, pieces, messages, date)
    for trim in ("none", "both", "right", "left"):
        pieces["roles"][name]["trim"] = trim
        if _agree(template, pieces, name, _PAD_LEFT + "words" + _PAD_RIGHT):
            return
    raise NotReducible(f"the template changes what the {name} says")


def _find_refused_words(template: Template, pieces: dict, name: str) -> None:
    """Looks for words of the template's own that it does something with where a content has them."""
    role, constants = pieces["roles"][name], template.constants
    contents = [(word, content) for word in constants for content in (word, f"words {word} words")]
    # Some words count only together, the one at a content's beginning and the other at its end.
    contents += [(word, f"{word} words {other}") for word, other in zip(constants, constants[1:])]
    for word, content in contents:
        if refuses(role, content) or _agree(template, pieces, name, content):
            continue
        if len(word.strip()) < 2 or len(role["refused_words"]) == MOST_REFUSED_WORDS:
            raise NotReducible(f"the template looks for {word!r} in what the {name} says")
        role["refused_words"].append(word.strip())


def _find_limits(template: Template, pieces: dict, name: str) -> None:
    _find_trim(template, pieces, name)
    role = pieces["roles"][name]
    role["blank"] = all(_agree(template, pieces, name, content) for content in _BLANKS)
    _find_refused_words(template, pieces, name)


# --- The proof ----------------------------------------------------------------------------------------------------


def _difference(template: Template, pieces: dict, messages: list[Message], date=_DATES[0]) -> str | None:
    """None if the conversation agrees wherever chat is; else where it does not. Answers are of _ANSWERS."""
    rest = template.render(messages, date=date)
    system = messages[0][1] if messages[0][0] == "system" else None
    users = [content for role, content in messages if role == "user"]
    for turn, user in enumerate(users):
        text = first_turn(pieces, system, user, date) if turn == 0 else next_turn(pieces, user)
        if turn == len(users) - 1:
            return None if rest == text else f"turn {turn + 1}"
        # Between the message and a past answer stands what the template puts in front of past answers.
        without_prompt = text[: len(text) - len(pieces["generation_prompt"])]
        if not rest.startswith(without_prompt):
            return f"turn {turn + 1}"
        _, found, rest = rest[len(without_prompt) :].partition(_ANSWERS[turn])
        if not found:
            return f"answer {turn + 1}"
    return None


def _check(template: Template, pieces: dict, messages: list[Message], date=_DATES[0]) -> None:
    place = _difference(template, pieces, messages, date)
    if place is None:
        return
    contents = ", ".join(repr(content[:40]) for _, content in messages)
    raise NotReducible(
        f"{describe(messages)} with the contents {contents} renders to other text at {place} than the fixed pieces around its "
        "messages"
    )


def _conversations(pieces: dict, with_system: bool) -> list[list[Message]]:
    """Conversations of 1 to 5 turns; over all of them each role says each odd content in each place at least once."""
    roles = pieces["roles"]
    marks = [text for role in roles.values() for text in (role.get("before"), role["after"])]
    marks += [pieces["generation_prompt"], pieces["end_of_turn"], pieces["begin_without_system"]]
    contents = [f"message {index}" for index in range(4)] + [*_BLANKS, *_ODD_CONTENTS]
    contents += [mark for mark in marks if isinstance(mark, str)]
    said_by_user = [content for content in contents if not refuses(roles["user"], content)]
    said_by_system = [content for content in contents if with_system and not refuses(roles["system"], content)]
    conversations = []
    for turns in PROVEN_TURNS:
        for begin in range(len(contents)):
            messages = [("system", said_by_system[begin % len(said_by_system)])] if with_system else []
            for turn in range(turns):
                messages += [("assistant", _ANSWERS[turn - 1])] if turn > 0 else []
                messages += [("user", said_by_user[(begin + 5 * turn) % len(said_by_user)])]
            conversations.append(messages)
    return conversations


def _prove(template: Template, pieces: dict, with_system: bool) -> None:
    for index, messages in enumerate(_conversations(pieces, with_system)):
        _check(template, pieces, messages, _DATES[index % len(_DATES)])


def _prove_answers(template: Template, pieces: dict) -> None:
    """What an answer says may change how it is rendered afterwards, but not what follows it."""
    expected = next_turn(pieces, _SECOND)[len(pieces["roles"]["assistant"]["after"]) :]
    for word in template.constants:
        try:
            text = template.render([("user", _FIRST), ("assistant", f"words {word} words"), ("user", _SECOND)])
        except NotReducible:
            continue  # It would not write such an answer, which nobody asks it to.
        if not text.endswith(expected):
            raise NotReducible(f"an answer with {word!r} in it changes what the template writes after it")


def _check_plain_chat(template: Template) -> None:
    """Says in a user's words what is wrong with a template that plain chat cannot be written with."""
    try:
        template.render([("user", _FIRST)])
    except NotReducible:
        try:
            template.render([("user", _FIRST)], tools=[], functions="[]", datetime="")
        except NotReducible:
            pass
        else:
            raise NotReducible("the template is for conversations with tools, and writes none without") from None
        raise


def reduce(source: str, special_tokens: dict[str, str]) -> dict:
    """The turn format of a template, proven, or the reason why there is none. Runs the template, so mind where."""
    try:
        template = Template(source, special_tokens)
        _check_plain_chat(template)
        pieces = _read_pieces(template, special_tokens.get("eos_token", ""))
        _find_limits(template, pieces, "user")
        _prove(template, pieces, with_system=False)
        _prove_answers(template, pieces)
    except NotReducible as reason:
        return {"reducible": False, "reason": str(reason)}
    try:
        _add_system_role(template, pieces)
        _find_limits(template, pieces, "system")
        _prove(template, pieces, with_system=True)
    except NotReducible as reason:
        # The conversations without a system message are proven, and are all that such a template can be used for.
        pieces["roles"].pop("system", None)
        pieces["left_out"] = {"system": str(reason)}
    return pieces
