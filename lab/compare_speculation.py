#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What guessing ahead gains: the same greedy answers with and without --draft-max, in turns.

"edit" lets the model write a text again that stands in its prompt; "new" lets it write what it has not read. Every
other round is in reverse. Shown are the median of the rounds' ratios of tokens per second with their quartiles, how
many of the guessed tokens were right, and whether the texts are the same.

    lab/compare_speculation.py --model models/smollm2-135m-instruct --rounds 9
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from quality.text import help_topics

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_SECONDS = 1800
NEW_PROMPTS = {
    "new, prose": "Once upon a time, in a village by the sea, there lived a man who",
    "new, list": "Twenty animals, each with one sentence about it:\n1. The elephant",
}


def edit_prompt(characters):
    """A text, and the beginning of the same text again."""
    topics = help_topics()
    begin = topics.index("\n\n", len(topics) // 2) + 2
    text = topics[begin:begin + characters]
    return f"The text:\n\n{text}\n\nThe same text once more, word for word:\n\n{text[:120]}"


def answer(program, model, prompt, tokens, draft):
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "out.jsonl"
        file = Path(name) / "prompt.txt"
        file.write_text(prompt, encoding="utf-8")
        command = [*program, "generate", "--model", model, "--raw", "--prompt-file", file, "--temperature", "0",
                   "--repetition-penalty", "1", "--max-new-tokens", tokens, "--json", out]
        if draft:
            command += ["--draft-max", draft]
        subprocess.run(list(map(str, command)), check=True, capture_output=True, timeout=PATIENCE_SECONDS)
        return json.loads(out.read_text("utf-8").splitlines()[-1])


def compare(arguments, label, prompt):
    """Whether the texts are the same."""
    ratios, plain, guessed = [], [], []
    same = True
    for number in range(arguments.rounds):
        order = (0, arguments.draft_max) if number % 2 == 0 else (arguments.draft_max, 0)
        found = {draft: answer(arguments.program, arguments.model, prompt, arguments.tokens, draft) for draft in order}
        slow, fast = found[0], found[arguments.draft_max]
        plain.append(slow["decode_tokens_per_s"])
        guessed.append(fast["decode_tokens_per_s"])
        ratios.append(guessed[-1] / plain[-1])
        same = same and slow["token_ids"] == fast["token_ids"]
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
    print(f"{label}: {statistics.median(ratios):.2f} [{low:.2f}, {high:.2f}] of {statistics.median(plain):.1f} tok/s, "
          f"best {max(guessed) / max(plain):.2f}; {fast['accepted_tokens']} of {fast['drafted_tokens']} guesses right "
          f"in {fast['new_tokens']} tokens; {'the same' if same else 'ANOTHER'} text; {len(ratios)} rounds", flush=True)
    return same


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", nargs="+", default=[str(ROOT / "run"), "carousel"])
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "smollm2-135m-instruct")
    parser.add_argument("--draft-max", type=int, default=15)
    parser.add_argument("--characters", type=int, default=1500, help="of the text that is written again")
    parser.add_argument("--tokens", type=int, default=256, help="of an answer")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    same = [compare(arguments, "edit", edit_prompt(arguments.characters))]
    same += [compare(arguments, label, prompt) for label, prompt in NEW_PROMPTS.items()]
    return 0 if all(same) else 1


if __name__ == "__main__":
    sys.exit(main())
