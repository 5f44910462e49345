# SPDX-License-Identifier: Apache-2.0
import unittest

from quality import tasks
from quality.carousel import task_lines
from quality.eviction_experiments import our_arms
from quality.lab import Lab
from quality.tasks import Haystack, generate

PROSE = "\n\n".join(
    f"Paragraph {'of many plain words ' * (5 + i % 7)}and its end, {chr(97 + i % 26)}." for i in range(60))


def count(text):
    """A tokenizer's stand-in: words and line ends."""
    return len(text.split()) + text.count("\n")


class Tasks(unittest.TestCase):
    def haystacks(self):
        return Haystack("filler"), Haystack("prose", PROSE)

    def all_cases(self, length=900):
        for name in tasks.TASKS:
            for haystack in self.haystacks():
                for case in generate(name, 4, length, haystack, count):
                    yield name, case

    def test_each_answer_stands_in_the_prompts_once(self):
        for name, case in self.all_cases():
            everything = "\n".join(turn.prompt for turn in case.turns)
            for turn in case.turns:
                for answer in turn.answers:
                    expected = 2 if name == "copy" and answer in case.turns[0].prompt.rsplit("\n", 1)[-1] else 1
                    self.assertEqual(everything.count(answer), expected, (name, answer))

    def test_prompts_are_as_long_as_they_may_be(self):
        for name, case in self.all_cases():
            if name in ("stream_questions",):
                continue
            length = count(case.turns[0].prompt)
            self.assertLessEqual(length, 900, name)
            self.assertGreater(length, 900 - 60 if name != "key_value" else 850, name)

    def test_the_same_seed_gives_the_same_cases(self):
        for name in tasks.TASKS:
            one, two = (task_lines(generate(name, 3, 700, Haystack("prose", PROSE), count, seed=5)) for _ in range(2))
            other = task_lines(generate(name, 3, 700, Haystack("prose", PROSE), count, seed=6))
            self.assertEqual(one, two)
            self.assertNotEqual(one, other)

    def test_cases_are_hidden_at_all_depths(self):
        cases = generate("passkey", 10, 900, Haystack("filler"), count)
        depths = [case.turns[0].prompt.index(case.turns[0].answers[0]) / len(case.turns[0].prompt) for case in cases]
        self.assertEqual(depths, sorted(depths))
        self.assertLess(depths[0], 0.15)
        self.assertGreater(depths[-1], 0.85)

    def test_later_questions_come_after_other_turns(self):
        (case,) = generate("later_passkey", 1, 700, Haystack("filler"), count)
        self.assertEqual(case.judged, [4])
        self.assertIn(case.turns[4].answers[0], case.turns[0].prompt)
        (case,) = generate("later_needles", 1, 700, Haystack("prose", PROSE), count)
        self.assertEqual(case.judged, [1, 2, 3])

    def test_what_is_said_in_between_is_the_same_for_all(self):
        (case,) = generate("later_passkey", 1, 700, Haystack("filler"), count)
        self.assertTrue(all(turn.said for turn in case.turns[:-1]))
        (line,) = task_lines([case])
        self.assertEqual([turn.get("score") for turn in line["turns"]], [turn.said or None for turn in case.turns])
        self.assertEqual(["max_new_tokens" in turn for turn in line["turns"]], [False] * 4 + [True])
        told = Lab._conversation(case, 4)
        self.assertTrue(told.endswith(case.turns[4].prompt))
        for turn in case.turns[:-1]:
            self.assertIn(turn.prompt + turn.said, told)

    def test_stream_questions_ask_ten_lines_back(self):
        (case,) = generate("stream_questions", 1, 900, Haystack("filler"), count)
        self.assertGreater(len(case.turns), 2)
        lines = []
        for turn in case.turns:
            lines += [line for line in turn.prompt.splitlines() if "The number of" in line and "Question" not in line]
            (place,) = [i for i, line in enumerate(lines) if turn.answers[0] in line]
            self.assertEqual(len(lines) - place, 10)

    def test_a_length_that_cannot_be_is_refused(self):
        with self.assertRaises(ValueError):
            generate("needle", 1, 5, Haystack("filler"), count)
        with self.assertRaises(ValueError):
            Haystack("prose", "one\n\ntwo")


class Arms(unittest.TestCase):
    def test_equal_bytes_are_the_budgets(self):
        arms = our_arms(512, 1000)
        half = arms["equal bytes"]
        resident = half[half.index("--max-cache-size") + 1]
        self.assertEqual(resident * 1000 + half[half.index("--recall-limit") + 1], 512 * 1000)
        attends = arms["equal attention"]
        self.assertEqual(attends[attends.index("--max-cache-size") + 1] +
                         32 * attends[attends.index("--recall-blocks") + 1], 512)
        self.assertNotIn("equal attention", our_arms(160, 1000))
