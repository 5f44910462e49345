# SPDX-License-Identifier: Apache-2.0
"""Retrieval tasks, generated from a seed. The same seed, length and haystack give the same prompts everywhere.

A case is one conversation. Each of its turns may have answers, and is then judged by the share of them that the
model's text holds. An answer that could be copied from anywhere but its own place would prove nothing, so each
stands in the prompts once.
"""

import random
from dataclasses import dataclass, field

PASSKEY_FILLER = [
    "The grass is green.", "The sky is blue.", "The sun is yellow.", "Here we go.", "There and back again."]

# Words that the tokenizer keeps whole or nearly so, and that the haystacks do not use as names.
NAMES = """
amber anchor apple arrow autumn badger bamboo basket beacon berry blossom bramble breeze bronze cactus candle
canyon castle cedar cherry clover cobalt comet copper coral cotton cricket crystal dagger daisy dolphin dragon
eagle ember falcon feather fern forest garden ginger glacier granite hammer harbor hazel heron honey island
ivory jasmine jungle kettle lantern lemon lily lizard lotus magnet maple marble meadow mirror nectar oak ocean
olive orchid otter panther pearl pebble pepper pine planet plum quartz rabbit raven ribbon river robin saffron
sailor salmon silver sparrow spruce thistle thunder tiger timber topaz tulip turtle velvet violet walnut willow
winter
""".split()


@dataclass
class Turn:
    prompt: str
    answers: list = field(default_factory=list)  # empty: nothing is judged
    max_new_tokens: int = 16
    said: str = ""  # what is answered whatever the model would say, so that all have the same conversation


@dataclass
class Case:
    id: str
    task: str
    turns: list

    @property
    def judged(self):
        """Indices of the turns that are asked something."""
        return [index for index, turn in enumerate(self.turns) if turn.answers]


class Haystack:
    """Sentences to hide things in. `kind` "filler" repeats the same five; "prose" takes paragraphs of a text."""

    def __init__(self, kind, text=""):
        self.kind = kind
        self.units = PASSKEY_FILLER
        if kind == "prose":
            # Numbers would be mistaken for answers, and code for prose.
            lines = (" ".join(part.split()) for part in text.split("\n\n"))
            self.units = [line for line in lines if 80 < len(line) < 900 and not any(c.isdigit() for c in line)]
            if not self.units:
                raise ValueError("the text has no paragraph of plain prose to hide anything in")

    def draw(self, count, chance):
        """`count` consecutive units, from a random place; the text goes round."""
        begin = chance.randrange(len(self.units)) if self.kind == "prose" else 0
        return [self.units[(begin + i) % len(self.units)] for i in range(count)]

    @property
    def joint(self):
        return " " if self.kind == "filler" else "\n"


def hide(haystack, needles, depths, length, count, frame, seed):
    """The longest prompt of at most `length` tokens: frame(haystack with the needles at their depths).

    `count` counts a text's tokens; `depths` are shares of the haystack, in [0, 1].
    """

    def build(units):
        lines = haystack.draw(units, random.Random(seed))
        places = sorted(zip((round(depth * units) for depth in depths), range(len(needles)), strict=True), reverse=True)
        for place, index in places:
            lines.insert(place, needles[index])
        return frame(haystack.joint.join(lines))

    if count(build(0)) > length:
        raise ValueError(f"the question alone takes more than {length} tokens")
    # Lengths grow almost evenly, so the answer is near a first guess.
    probe = 64
    guess = max(1, int(length * probe / max(1, count(build(probe)) - count(build(0)))))
    low, step = 0, max(1, guess // 50)
    high = guess
    while count(build(high)) <= length:
        low, high = high, high + step
    while low == 0 and high > step and count(build(high - step)) > length:
        high -= step
    low = max(low, high - step) if count(build(max(low, high - step))) <= length else low
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(build(middle)) <= length else (low, middle)
    return build(low)


def _numbers(chance, count, digits=5):
    """Different numbers of which none is part of another."""
    return [str(number) for number in chance.sample(range(10 ** (digits - 1), 10**digits), count)]


def _spread(index, cases, chance):
    """A depth in the index-th of `cases` equal parts, away from both ends."""
    return 0.02 + 0.96 * (index + chance.random()) / cases


# Forms that SmolLM2-135M answers with its whole cache (3 of 3 at 2,048 tokens): completion, not the chat template.
# Without "the number" it says "the pass key is the pass key" from 2,048 tokens on.
HIDDEN = "Some important information is hidden in a long text of no importance. Find it and remember it for later."
PASSKEY_QUESTION = "What is the pass key? The pass key is the number"


def _passkey_line(key):
    return f"The pass key is the number {key}. Remember it."


def passkey(index, cases, length, haystack, count, seed):
    chance = random.Random(f"passkey {seed} {index}")
    (key,) = _numbers(chance, 1)
    return Case(f"passkey-{index}", "passkey", [Turn(
        hide(haystack, [_passkey_line(key)], [_spread(index, cases, chance)],
             length, count,
             lambda text: f"{HIDDEN}\n\n{text}\n\n{PASSKEY_QUESTION}", chance.random()),
        [key])])


def _magic(name, number):
    return f"The special magic number for {name} is {number}."


def _needle(task, index, cases, length, haystack, count, seed, keys, values, queries):
    """RULER's needles: `keys` names with `values` numbers each, of which `queries` names are asked for."""
    chance = random.Random(f"{task} {seed} {index}")
    names = chance.sample(NAMES, keys)
    numbers = _numbers(chance, keys * values)
    needles = [_magic(name, number) for name, number in zip([n for n in names for _ in range(values)], numbers)]
    depths = [chance.uniform(0.02, 0.98) for _ in needles]
    if keys * values == 1:
        depths = [_spread(index, cases, chance)]
    answers = numbers[:queries * values]
    asked = names[0] if queries == 1 else ", ".join(names[:queries - 1]) + f" and {names[queries - 1]}"
    # The values of one name are asked for together; several names are answered in the order in which they are asked.
    question = (f"What is the special magic number for {asked}?" if len(answers) == 1 else
                f"What are all the special magic numbers for {asked}?")
    lead = (f"The special magic number for {asked} is" if len(answers) == 1 else
            f"The special magic numbers for {asked} are")
    prompt = hide(haystack, needles, depths, length, count,
                  lambda text: f"{HIDDEN}\n\n{text}\n\n{question} {lead}", chance.random())
    return Case(f"{task}-{index}", task, [Turn(prompt, answers, 12 * len(answers))])


def needle(*arguments):
    return _needle("needle", *arguments, keys=1, values=1, queries=1)


def needle_multikey(*arguments):
    return _needle("multikey", *arguments, keys=4, values=1, queries=1)


def needle_tenkeys(*arguments):
    return _needle("tenkeys", *arguments, keys=10, values=1, queries=1)


def needle_multivalue(*arguments):
    return _needle("multivalue", *arguments, keys=1, values=2, queries=1)


def needle_multiquery(*arguments):
    return _needle("multiquery", *arguments, keys=4, values=1, queries=2)


def key_value(index, cases, length, _haystack, count, seed):
    """As many lines of names and numbers as fit; one name is asked for."""
    chance = random.Random(f"key_value {seed} {index}")
    pairs = [f"{a} {b}" for a in NAMES for b in NAMES if a != b]
    chance.shuffle(pairs)
    numbers = _numbers(chance, len(pairs))
    place = _spread(index, cases, chance)

    def build(lines):
        asked = min(int(place * lines), lines - 1)
        text = "\n".join(f"{name}: {number}" for name, number in zip(pairs[:lines], numbers))
        return f"{text}\n\nThe list above again, one entry:\n{pairs[asked]}:", numbers[asked]

    lines = 1
    while count(build(lines + 8)[0]) <= length:
        lines += 8
    prompt, answer = build(lines)
    return Case(f"key_value-{index}", "key_value", [Turn(prompt, [answer])])


def copy(index, cases, length, haystack, count, seed):
    """A row of words, the haystack, and the row's beginning again: what follows is an induction head's to say."""
    chance = random.Random(f"copy {seed} {index}")
    words = chance.sample(NAMES, 10)
    prompt = hide(haystack, [f"The words are: {' '.join(words)}."], [_spread(index, cases, chance)], length, count,
                  lambda text: f"{text}\n\nThe words are: {' '.join(words[:6])}", chance.random())
    return Case(f"copy-{index}", "copy", [Turn(prompt, words[6:])])


def stream_questions(index, _cases, length, haystack, count, seed, every=5, back=10):
    """Lines with a fact each; every few lines a question about one some lines before (as StreamEval does, Xiao et al.
    2023)."""
    chance = random.Random(f"stream {seed} {index}")
    names = [f"{a} {b}" for a in NAMES for b in chance.sample(NAMES, 3) if a != b]
    chance.shuffle(names)
    numbers = _numbers(chance, len(names))
    filler = haystack.draw(len(names), chance)
    turns, text, line, used = [], "", 0, 0
    while True:
        for _ in range(every):
            text += f"{filler[line][:200]} The number of {names[line]} is {numbers[line]}.\n"
            line += 1
        asked = line - back
        if asked < 0:
            continue
        # The filler is read in the same turn as the question after it.
        turn = Turn(f"{text}Question: what is the number of {names[asked]}? Answer: the number of {names[asked]} is",
                    [numbers[asked]], 8)
        used += count(turn.prompt) + 8
        if used > length or line + every > len(names):
            break
        turns.append(turn)
        text = "\n"
    return Case(f"stream_questions-{index}", "stream_questions", turns)


# Questions between the telling and the asking. What a small model says to them differs with every rounding and leads
# some conversations astray, so each has its answer.
UNRELATED = {"What is the capital of France?": " Paris.", "Name three colours of the rainbow.": " Red, green and blue.",
             "What do bees make?": " Honey.", "Is water wet? Answer in one word.": " Yes.",
             "What is two plus two?": " Four.", "Name an animal that can fly.": " An eagle."}


def _asked(question):
    return f"\n\nQuestion: {question}\nAnswer:"


def later_passkey(index, cases, length, haystack, count, seed):
    """The passkey is told in the first turn, which asks something else; its question comes after three more turns."""
    chance = random.Random(f"later {seed} {index}")
    (key,) = _numbers(chance, 1)
    others = chance.sample(list(UNRELATED), 4)
    first = hide(haystack, [_passkey_line(key)], [_spread(index, cases, chance)], length, count,
                 lambda text: f"{HIDDEN}\n\n{text}{_asked(others[0])}", chance.random())
    turns = [Turn(text, said=UNRELATED[other])
             for text, other in zip([first, *map(_asked, others[1:])], others, strict=True)]
    turns.append(Turn(f"\n\n{PASSKEY_QUESTION}", [key], 12))
    return Case(f"later_passkey-{index}", "later_passkey", turns)


def later_needles(index, _cases, length, haystack, count, seed, needles=3):
    """Several numbers are told in the first turn and asked for one by one in later ones."""
    chance = random.Random(f"later needles {seed} {index}")
    names, numbers = chance.sample(NAMES, needles), _numbers(chance, needles)
    other = next(iter(UNRELATED))
    first = hide(haystack, [_magic(*pair) for pair in zip(names, numbers)],
                 [chance.uniform(0.02, 0.98) for _ in names], length, count,
                 lambda text: f"{HIDDEN}\n\n{text}{_asked(other)}", chance.random())
    turns = [Turn(first, said=UNRELATED[other])]
    turns += [Turn(f"\n\nWhat is the special magic number for {name}? The special magic number for {name} is",
                   [number], 12) for name, number in zip(names, numbers)]
    return Case(f"later_needles-{index}", "later_needles", turns)


TASKS = {
    "passkey": passkey,
    "needle": needle,
    "multikey": needle_multikey,
    "tenkeys": needle_tenkeys,
    "multivalue": needle_multivalue,
    "multiquery": needle_multiquery,
    "key_value": key_value,
    "copy": copy,
    "stream_questions": stream_questions,
    "later_passkey": later_passkey,
    "later_needles": later_needles,
}


def generate(task, cases, length, haystack, count, seed=1):
    """`cases` conversations of `task` with prompts of at most `length` tokens."""
    return [TASKS[task](index, cases, length, haystack, count, seed) for index in range(cases)]
