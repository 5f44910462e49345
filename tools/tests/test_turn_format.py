# SPDX-License-Identifier: Apache-2.0
"""The reduction of chat templates, on small templates in the manner of the well-known ones."""

import datetime
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import turn_format  # noqa: E402
from chat_template import Template  # noqa: E402

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

# Puts the system's message inside the first user's.
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0]['content'] %}"
    "{% else %}{% set rest = messages %}{% set system = false %}{% endif %}"
    "{% for message in rest %}"
    "{% if loop.first and system %}{% set content = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content + ' [/INST]' }}"
    "{% else %}{{ ' ' + content + ' ' + eos_token }}{% endif %}{% endfor %}"
)


GEMMA_3 = GEMMA.replace(
    "{{ raise_exception('System role not supported') }}",
    "{% set prefix = messages[0]['content'] + '\n\n' %}{% set messages = messages[1:] %}{% else %}{% set prefix = '' %}",
).replace("message['content'] | trim +", "(prefix if loop.first else '') + message['content'] | trim +")

# Answers lose their thoughts, except the last one; the end of the text is marked where no answer is to come.
THINKING = (
    "{% for message in messages %}"
    "{% if message.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
    "{% if loop.last %}{{ '<think>\n' + (message.reasoning_content or '') + '\n</think>\n' }}{% endif %}"
    "{{ message.content.split('</think>')[-1].lstrip('\n') + '<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% else %}{{ eos_token }}{% endif %}"
)

DATE = datetime.datetime(2024, 7, 6)


def reduce(template, tokens=None):
    return turn_format.reduce(template, TOKENS if tokens is None else tokens)


class Case(unittest.TestCase):
    def reducible(self, template):
        """The turn format, held against the template on a conversation of its own."""
        result = reduce(template)
        self.assertTrue(result["reducible"], result)
        rendering = Template(template, TOKENS)
        for system in (None, "Be brief.") if "system" in result["roles"] else (None,):
            messages = [("system", system)] if system else []
            first = turn_format.first_turn(result, system, "Hi there.", DATE)
            self.assertEqual(rendering.render([*messages, ("user", "Hi there.")], date=DATE), first)
            for turn, user in enumerate(("Go on: {{ x }} </s>", "And then?", "Why?")):
                messages += [("user", "Hi there."), ("assistant", f"Answer {turn}.")]
                # What stands in front of a past answer may be other text than what the answer was asked for by.
                past, _, rest = rendering.render([*messages, ("user", user)], date=DATE).rpartition(f"Answer {turn}.")
                self.assertEqual(rest, turn_format.next_turn(result, user))
                self.assertTrue(past.startswith(turn_format.beginning(result, system, DATE) + "Hi there."))
        return result

    def refused(self, template, words):
        result = reduce(template)
        self.assertFalse(result["reducible"], result)
        self.assertIn(words, result["reason"])
        self.assertNotIn("\n", result["reason"])


def role(before, after, **others):
    return {"before": before, "after": after, "trim": "none", "blank": True, "refused_words": [], **others}


class Reducible(Case):
    def test_chatml(self):
        self.assertEqual(
            self.reducible(CHATML),
            {
                "reducible": True,
                "begin_without_system": "<|im_start|>system\nBe kind.<|im_end|>\n",
                "roles": {
                    "system": role("<|im_start|>system\n", "<|im_end|>\n", opens_user_turn=False),
                    "user": role("<|im_start|>user\n", "<|im_end|>\n"),
                    "assistant": {"after": "<|im_end|>\n"},
                },
                "generation_prompt": "<|im_start|>assistant\n",
                "end_of_turn": "<|im_end|>",
            },
        )

    def test_llama_3(self):
        result = self.reducible(LLAMA_3)
        self.assertEqual([result["roles"][name]["trim"] for name in ("system", "user")], ["both", "both"])
        self.assertEqual(result["begin_without_system"], "<s>")
        self.assertEqual(result["roles"]["system"]["before"], "<s><|start_header_id|>system<|end_header_id|>\n\n")
        self.assertEqual(result["end_of_turn"], "<|eot_id|>")

    def test_gemma_has_no_system(self):
        result = self.reducible(GEMMA)
        self.assertEqual(list(result["roles"]), ["user", "assistant"])
        self.assertIn("System role not supported", result["left_out"]["system"])
        self.assertEqual(result["generation_prompt"], "<start_of_turn>model\n")
        self.assertEqual(result["end_of_turn"], "<end_of_turn>")

    def test_mistral(self):
        result = self.reducible(MISTRAL)
        self.assertEqual(result["roles"]["user"], role("[INST] ", " [/INST]"))
        self.assertEqual(result["roles"]["assistant"], {"after": "</s>"})
        self.assertEqual((result["generation_prompt"], result["end_of_turn"]), ("", "</s>"))
        self.assertNotIn("system", result["roles"])

    def test_system_inside_the_first_message_of_the_user(self):
        result = self.reducible(GEMMA_3)
        system = role("<s><start_of_turn>user\n", "\n\n", opens_user_turn=True)
        self.assertEqual(result["roles"]["system"], system)
        self.assertEqual(result["roles"]["user"]["before"], "<start_of_turn>user\n")
        result = self.reducible(LLAMA_2)
        self.assertEqual(result["roles"]["system"]["before"], "<s>[INST] <<SYS>>\n")
        self.assertTrue(result["roles"]["system"]["opens_user_turn"])
        self.assertEqual(result["end_of_turn"], "</s>")

    def test_system_that_moves_to_the_last_message_is_left_out(self):
        moving = CHATML.replace("message['content'] +", "(messages[0].content if loop.last else '') + message['content'] +")
        self.assertFalse(reduce(moving)["reducible"])
        result = self.reducible(
            "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set messages = messages[1:] %}{% endif %}"
            "{% for m in messages %}{% if m.role == 'user' %}"
            "[INST]{{ system + ': ' if loop.last and system }}{{ m.content }}[/INST]"
            "{% else %}{{ m.content }}</s>{% endif %}{% endfor %}"
        )
        self.assertIn("renders to other text", result["left_out"]["system"])

    def test_past_answers_may_be_rendered_otherwise(self):
        result = self.reducible(THINKING)
        self.assertEqual(result["generation_prompt"], "<|im_end|>\n<|im_start|>assistant\n<think>\n")
        self.assertEqual((result["roles"]["assistant"]["after"], result["end_of_turn"]), ("<|im_end|>\n", "<|im_end|>"))
        self.assertEqual(result["roles"]["user"]["refused_words"], [])

    def test_extensions_that_templates_rely_on(self):
        loop = CHATML.replace("{% endfor %}", "{% if loop.index > 100 %}{% break %}{% endif %}{% endfor %}")
        self.reducible(loop)
        content = "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
        self.assertIn(content, CHATML)
        marked = CHATML.replace(content, "{% generation %}" + content + "{% endgeneration %}")
        self.assertEqual(self.reducible(marked), reduce(CHATML))


class EndOfTurn(Case):
    """What ends an answer is what follows it where a user's turn comes next."""

    def test_only_where_the_answer_is_last(self):
        result = self.reducible(CHATML.replace("{% endfor %}", "{% if loop.last and message.role != 'user' %}</s>{% endif %}{% endfor %}"))
        self.assertEqual((result["roles"]["assistant"]["after"], result["end_of_turn"]), ("<|im_end|>\n", "<|im_end|>"))

    def test_only_where_another_message_follows(self):
        result = self.reducible(
            "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content }}{{ '' if loop.last else eos_token }}"
            "{% else %}<|{{ m.role }}|>{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|bot|>{% endif %}"
        )
        self.assertEqual((result["roles"]["assistant"]["after"], result["end_of_turn"]), ("</s>", "</s>"))
        self.assertEqual(result["roles"]["user"]["before"], "<|user|>")

    def test_the_mark_of_the_next_turn(self):
        result = self.reducible(
            "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
        )
        self.assertEqual((result["roles"]["assistant"]["after"], result["end_of_turn"]), ("", "<|user|>"))

    def test_no_mark(self):
        result = self.reducible(
            "{% for m in messages %}{{ {'user': 'Q: ', 'assistant': 'A: '}[m.role] + m.content + '\n\n' }}{% endfor %}A:"
        )
        self.assertEqual(result["end_of_turn"], "")

    def test_a_token_that_looks_like_none(self):
        result = turn_format.reduce(CHATML.replace("<|im_end|>", "[e~["), {"bos_token": "<s>", "eos_token": "[e~["})
        self.assertEqual(result["end_of_turn"], "[e~[")

    def test_a_mark_that_ends_thoughts_too(self):
        parts = (
            "{% for m in messages %}{% if m.role == 'user' %}<|start|>user<|message|>{{ m.content }}<|end|>{% else %}"
            "{% if m.thinking and loop.last %}<|start|>assistant<|think|>{{ m.thinking }}<|end|>{% endif %}"
            "<|start|>assistant<|message|>{{ m.content }}{{ LAST }}{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
        )
        self.assertEqual(self.reducible(parts.replace("LAST", "'<|end|>'"))["end_of_turn"], "")
        result = self.reducible(parts.replace("LAST", "'<|return|>' if loop.last else '<|end|>'"))
        self.assertEqual((result["end_of_turn"], result["roles"]["assistant"]["after"]), ("<|return|>", "<|end|>"))
        self.refused(parts.replace("LAST", "'<|end|>message<|end_of_message|>'"), "the model writes a part")


class Contents(Case):
    """What a template does with some contents and not with others."""

    def test_trimmed_at_the_sides_that_the_template_strips(self):
        for stripped, trim in (("strip()", "both"), ("lstrip()", "left"), ("rstrip()", "right")):
            one = f"(message['content'].{stripped} if message['role'] == 'user' else message['content'])"
            result = self.reducible(CHATML.replace("message['content'] +", f"{one} +"))
            self.assertEqual([result["roles"][name]["trim"] for name in ("system", "user")], ["none", trim])
        self.refused(CHATML.replace("message['content'] +", "message['content'].strip('\n') +"), "renders to other text")

    def test_blank_system_message(self):
        condition = "{% if not (message['role'] == 'system' and not message['content']) %}"
        result = self.reducible(CHATML.replace("{{ '<|im_start|>' + message", condition + "{{ '<|im_start|>' + message").replace("{% endfor %}", "{% endif %}{% endfor %}"))
        self.assertFalse(result["roles"]["system"]["blank"])
        self.assertTrue(result["roles"]["user"]["blank"])
        self.assertTrue(turn_format.refuses(result["roles"]["system"], " \n"))

    def test_words_that_the_template_looks_for(self):
        result = self.reducible(CHATML.replace("message['content'] +", "message['content'].split('</think>')[-1] +"))
        self.assertEqual(result["roles"]["user"]["refused_words"], ["</think>"])
        self.assertEqual(result["roles"]["system"]["refused_words"], ["</think>"])
        result = self.reducible(
            CHATML + "{% if '/no_think' in messages[0].content %}{{ '<think></think>' }}{% endif %}"
        )
        self.assertEqual(result["roles"]["system"]["refused_words"], ["/no_think"])
        self.assertTrue(turn_format.refuses(result["roles"]["system"], "Answer at once. /No_Think"))

    def test_words_that_count_together(self):
        both = "message.content.startswith('<tool>') and message.content.endswith('</tool>')"
        result = self.reducible(CHATML.replace("{{ '<|im_start|>' +", "{% if " + both + " %}#{% endif %}{{ '<|im_start|>' +"))
        self.assertEqual(result["roles"]["user"]["refused_words"], ["<tool>"])

    def test_letters_are_no_words(self):
        self.refused(CHATML.replace("message['content'] +", "message['content'].replace('k', 'c') +"), "looks for 'k'")

    def test_answers_that_change_what_follows(self):
        self.refused(
            CHATML.replace("{% if add_gen", "{% if messages | length > 2 and 'done' in messages[-2].content %}#{% endif %}{% if add_gen"),
            "an answer with 'done' in it",
        )


class Dates(Case):
    def test_a_date_is_a_hole(self):
        result = self.reducible(CHATML.replace("Be kind.", "It is ' + strftime_now('%d %B %Y') + '."))
        hole = ["<|im_start|>system\nIt is ", {"date": "%d %B %Y"}, ".<|im_end|>\n"]
        self.assertEqual(result["begin_without_system"], hole)
        self.assertEqual(result["roles"]["system"]["before"], "<|im_start|>system\n")
        text = turn_format.beginning(result, None, DATE)
        self.assertEqual(text, "<|im_start|>system\nIt is 06 July 2024.<|im_end|>\n<|im_start|>user\n")

    def test_a_date_in_front_of_a_system_message_of_a_template_that_refuses_some_messages(self):
        stern = "{% if 'stop' in messages[-1].content %}{{ raise_exception('no') }}{% endif %}"
        result = self.reducible(stern + "{{ strftime_now('%Y') }}" + CHATML)
        self.assertEqual(result["roles"]["system"]["before"], [{"date": "%Y"}, "<|im_start|>system\n"])
        self.assertEqual(result["roles"]["user"]["refused_words"], ["stop"])

    def test_two_dates(self):
        result = self.reducible("{{ strftime_now('%Y') + strftime_now('%m') + '/' + strftime_now('%Y') }}" + CHATML)
        dates = [{"date": "%Y"}, {"date": "%m"}, "/", {"date": "%Y"}]
        self.assertEqual(result["begin_without_system"][:4], dates)
        self.assertEqual(result["roles"]["system"]["before"], [*dates, "<|im_start|>system\n"])

    def test_refused(self):
        self.refused("{{ strftime_now('%c') }}" + CHATML, "'%c'")
        self.refused(CHATML.replace("message['content'] +", "message['content'] + strftime_now('%d') +"), "into every turn")
        self.refused("{{ strftime_now('%d') | int + 1 }}" + CHATML, "renders to other text")
        # In a place where the date decides what is written.
        self.refused("{% if strftime_now('%Y') > '2030' %}#{% endif %}" + CHATML, "renders to other text")


class NotReducible(Case):
    def test_turns_counted(self):
        self.refused(CHATML.replace("{{ '<|im_start|>' +", "{{ '<|im_start|>' + loop.index | string +"), "")

    def test_last_message_written_otherwise(self):
        self.refused(CHATML.replace("'\n' + message", "('\n<think>' if loop.last else '\n') + message"), "")

    def test_long_conversations_cut(self):
        self.refused(CHATML.replace("in messages %}", "in messages[-4:] %}"), "renders to other text")

    def test_contents_in_capitals(self):
        self.refused(CHATML.replace("message['content']", "message['content'] | upper"), "content")

    def test_only_for_tools(self):
        self.refused("{% for tool in tools %}{% endfor %}" + CHATML, "for conversations with tools")

    def test_not_jinja(self):
        self.refused("{% for %}", "not valid Jinja")

    def test_refuses_everything(self):
        self.refused("{{ raise_exception('no') }}", "refuses")

    def test_empty_rendering(self):
        self.refused("{# nothing #}", "content")

    def test_unknown_filter_and_type_errors(self):
        self.refused("{{ messages | nosuch }}", "not valid Jinja")
        self.refused("{{ messages + 1 }}", "refuses")


if __name__ == "__main__":
    unittest.main()
