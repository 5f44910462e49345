# SPDX-License-Identifier: Apache-2.0
"""The reduction of chat templates, on small templates in the manner of the well-known ones."""

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

# Begins every conversation with the token, strips contents, and is laid out over lines, which lstrip_blocks has to undo.
LLAMA_3 = """{% set loop_messages = messages %}
{%- for message in loop_messages %}
    {%- set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' %}
    {%- if loop.index0 == 0 %}
        {%- set content = bos_token + content %}
    {%- endif %}
    {{- content }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""

# Refuses a system message, strips contents, calls the assistant "model" and insists on taking turns.
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)

# Nothing announces an answer: it follows the closing bracket.
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)

# Puts the system's message inside the first user's: no fixed text around messages does that.
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0]['content'] %}"
    "{% else %}{% set rest = messages %}{% set system = false %}{% endif %}"
    "{% for message in rest %}"
    "{% if loop.first and system %}{% set content = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content + ' [/INST]' }}"
    "{% else %}{{ ' ' + content + ' ' + eos_token }}{% endif %}{% endfor %}"
)


def reduce(template, tokens=None):
    return pm.reduce(template, TOKENS if tokens is None else tokens)


class Reducible(unittest.TestCase):
    def test_chatml(self):
        result = reduce(CHATML)
        self.assertEqual(
            result,
            {
                "format": "carousel-turn-format",
                "version": 1,
                "reducible": True,
                "begin": "",
                "begin_without_system": "<|im_start|>system\nBe kind.<|im_end|>\n",
                "roles": {
                    role: {"before": f"<|im_start|>{role}\n", "after": "<|im_end|>\n"}
                    for role in ("system", "user", "assistant")
                },
                "generation_prompt": "<|im_start|>assistant\n",
                "end_of_turn": "<|im_end|>",
                "trim": False,
            },
        )

    def test_llama_3(self):
        result = reduce(LLAMA_3)
        self.assertTrue(result["reducible"], result)
        self.assertTrue(result["trim"])
        self.assertEqual((result["begin"], result["begin_without_system"]), ("<s>", "<s>"))
        self.assertEqual(result["roles"]["system"]["before"], "<|start_header_id|>system<|end_header_id|>\n\n")
        self.assertEqual(result["end_of_turn"], "<|eot_id|>")

    def test_gemma_has_no_system(self):
        result = reduce(GEMMA)
        self.assertTrue(result["reducible"], result)
        self.assertEqual(list(result["roles"]), ["user", "assistant"])
        self.assertIn("System role not supported", result["left_out"]["system"])
        self.assertEqual(result["roles"]["assistant"], {"before": "<start_of_turn>model\n", "after": "<end_of_turn>\n"})
        self.assertEqual(result["end_of_turn"], "<end_of_turn>")

    def test_mistral(self):
        result = reduce(MISTRAL)
        self.assertTrue(result["reducible"], result)
        self.assertEqual(result["roles"]["user"], {"before": "[INST] ", "after": " [/INST]"})
        self.assertEqual(result["roles"]["assistant"], {"before": "", "after": "</s>"})
        self.assertEqual((result["generation_prompt"], result["end_of_turn"]), ("", "</s>"))
        self.assertNotIn("system", result["roles"])

    def test_llama_2_without_its_system_message(self):
        result = reduce(LLAMA_2)
        self.assertTrue(result["reducible"], result)
        self.assertNotIn("system", result["roles"])
        self.assertIn("system", result["left_out"])

    def test_text_at_the_start_stays_out_of_later_system_messages(self):
        result = reduce("{{ '#begin#' }}" + CHATML)
        self.assertEqual(result["begin"], "#begin#")
        self.assertEqual(result["roles"]["system"]["before"], "<|im_start|>system\n")

    def test_renders_like_the_template(self):
        messages = [("system", " s "), ("user", "u\n"), ("assistant", ""), ("user", "{{ x }}")]
        for template in (CHATML, LLAMA_3):
            expected = pm.Template(template, TOKENS).render(messages, True)
            self.assertEqual(pm.apply(reduce(template), messages, True), expected)

    def test_extensions_that_templates_rely_on(self):
        loop = CHATML.replace("{% endfor %}", "{% if loop.index > 100 %}{% break %}{% endif %}{% endfor %}")
        self.assertTrue(reduce(loop)["reducible"])


class NotReducible(unittest.TestCase):
    def check(self, template, words):
        result = reduce(template)
        self.assertFalse(result["reducible"], result)
        self.assertIn(words, result["reason"])
        self.assertNotIn("\n", result["reason"])

    def test_turns_counted(self):
        self.check(CHATML.replace("{{ '<|im_start|>' +", "{{ '<|im_start|>' + loop.index | string +"), "")

    def test_last_answer_written_otherwise(self):
        # In the manner of models that show the last answer's thoughts only.
        self.check(CHATML.replace("'\n' + message", "('\n<think>' if loop.last else '\n') + message"), "")

    def test_contents_looked_into(self):
        self.check(
            CHATML.replace("message['content'] +", "message['content'].split('</think>')[-1] +"),
            "renders to other text",
        )

    def test_long_conversations_cut(self):
        self.check(CHATML.replace("in messages %}", "in messages[-4:] %}"), "renders to other text")

    def test_contents_in_capitals(self):
        self.check(CHATML.replace("message['content']", "message['content'] | upper"), "content")

    def test_only_one_role_stripped(self):
        one = "(message['content'] | trim if message['role'] == 'user' else message['content'])"
        self.check(CHATML.replace("message['content'] +", f"{one} +"), "renders to other text")

    def test_date(self):
        self.check("{{ strftime_now('%d %B %Y') }}" + CHATML, "date")

    def test_not_jinja(self):
        self.check("{% for %}", "not valid Jinja")

    def test_refuses_everything(self):
        self.check("{{ raise_exception('no') }}", "refuses")

    def test_empty_rendering(self):
        self.check("{# nothing #}", "content")

    def test_unknown_filter_and_type_errors(self):
        self.check("{{ messages | nosuch }}", "not valid Jinja")
        self.check("{{ messages + 1 }}", "refuses")


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
