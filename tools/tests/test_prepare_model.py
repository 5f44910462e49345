# SPDX-License-Identifier: Apache-2.0
"""A model's template: found in its files, and run apart with limits."""

import io
import json
import sys
import tempfile
import time
import unittest
from contextlib import redirect_stderr
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import prepare_model as pm  # noqa: E402

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}

CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Nothing announces an answer: it follows the closing bracket.
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)


class Hostile(unittest.TestCase):
    """Templates that would take the machine with them; each has to come back soon, with a reason."""

    def check(self, template, seconds=2):
        begin = time.monotonic()
        result = pm.reduce_apart(template, TOKENS, seconds)
        self.assertLess(time.monotonic() - begin, seconds + 8)
        self.assertFalse(result["reducible"], str(result)[:500])
        self.assertLess(len(result["reason"]), 1000)

    def test_loops_without_end(self):
        self.check("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}" + CHATML)

    def test_memory(self):
        self.check("{% set a = 'x' * 4000000000 %}{{ a }}" + CHATML)

    def test_much_text(self):
        self.check("{% for a in range(99999) %}{{ 'x' * 100000 }}{% endfor %}" + CHATML)

    def test_recursion(self):
        self.check("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}")

    def test_way_out_of_the_sandbox(self):
        self.check("{{ ''.__class__.__mro__[1].__subclasses__() }}" + CHATML)
        self.check("{{ messages.append(1) }}" + CHATML)

    def test_power_of_ten(self):
        self.check("{{ 10 ** (10 ** 10) }}" + CHATML)

    def test_nested_brackets(self):
        self.check("{{ " + "(" * 100000 + "1" + ")" * 100000 + " }}")

    def test_long_template(self):
        self.check("x" * (pm.LONGEST_TEMPLATE_CHARACTERS + 1))


class Folder(unittest.TestCase):
    def setUp(self):
        self._folder = tempfile.TemporaryDirectory()
        self.addCleanup(self._folder.cleanup)
        self.model = Path(self._folder.name)

    def write(self, name, value):
        (self.model / name).write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")

    def written(self):
        return json.loads((self.model / "turn_format.json").read_text(encoding="utf-8"))

    def test_no_template(self):
        result = pm.prepare(self.model)
        self.assertFalse(result["reducible"])
        self.assertIn("no chat template", result["reason"])
        self.assertEqual(self.written(), result)

    def test_template_of_tokenizer(self):
        quoted = CHATML.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;").replace("\n", "&#10;")
        self.write("openvino_tokenizer.xml", f'<net><rt_info><chat_template value="{quoted}" /></rt_info></net>')
        self.assertEqual(pm.find_template(self.model), CHATML)
        self.assertTrue(pm.prepare(self.model)["reducible"])
        self.assertEqual([path.name for path in self.model.glob("*turn*")], ["turn_format.json"])

    def test_template_of_config(self):
        self.write("openvino_tokenizer.xml", "<net><rt_info /></net>")
        self.write(
            "tokenizer_config.json",
            {
                "chat_template": [{"name": "tools", "template": "t"}, {"name": "default", "template": MISTRAL}],
                "bos_token": {"content": "<b>"},
                "eos_token": "</b>",
            },
        )
        self.assertEqual(pm.prepare(self.model)["begin_without_system"], "<b>")
        self.assertEqual(self.written()["end_of_turn"], "</b>")

    def test_template_of_its_own_file_comes_first(self):
        self.write("tokenizer_config.json", {"chat_template": MISTRAL})
        self.write("chat_template.jinja", CHATML)
        self.assertEqual(pm.find_template(self.model), CHATML)

    def test_token_that_is_not_known(self):
        self.write("chat_template.jinja", MISTRAL)
        result = pm.prepare(self.model)
        self.assertFalse(result["reducible"])
        self.assertIn("bos_token", result["reason"])

    def test_damaged_files(self):
        self.write("openvino_tokenizer.xml", "<net><rt_info>")
        self.assertRaisesRegex(pm.ModelError, "openvino_tokenizer.xml", pm.prepare, self.model)
        self.write("tokenizer_config.json", "[1]")
        self.assertRaisesRegex(pm.ModelError, "tokenizer_config.json.*object", pm.prepare, self.model)
        self.write("tokenizer_config.json", "{")
        self.assertRaisesRegex(pm.ModelError, "tokenizer_config.json", pm.prepare, self.model)
        self.assertFalse((self.model / "turn_format.json").exists())

    def test_no_folder(self):
        self.assertRaisesRegex(pm.ModelError, "no such folder", pm.prepare, self.model / "none")
        with redirect_stderr(io.StringIO()) as written:
            self.assertEqual(pm.main([str(self.model / "none")]), 1)
        self.assertEqual(written.getvalue().count("\n"), 1)


if __name__ == "__main__":
    unittest.main()
