# SPDX-License-Identifier: Apache-2.0
"""GGUF files whose metadata is another than it should be: imported, or refused in one line, and nothing else."""

import random
import sys
import unittest
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

import decoder_graph  # noqa: E402
import gguf_header  # noqa: E402
import gguf_parts  # noqa: E402
import gguf_tokenizer  # noqa: E402
import import_case  # noqa: E402
import import_gguf  # noqa: E402
import tiny_gguf  # noqa: E402

# Every entry that the importer reads and that a tiny file does not have by itself, with a sound value.
MORE_ENTRIES = {
    "general.alignment": 32,
    "general.name": "tiny",
    "general.type": "model",
    "llama.attention.causal": True,
    "llama.attention.clamp_kqv": 0.0,
    "llama.attention.key_length": 16,
    "llama.attention.max_alibi_bias": 0.0,
    "llama.attention.scale": 0.2,
    "llama.attention.sliding_window": 8,
    "llama.attention.sliding_window_pattern": [True, False],
    "llama.attention.value_length": 16,
    "llama.attn_logit_softcapping": 20.0,
    "llama.embedding_scale": 1.0,
    "llama.expert_count": 0,
    "llama.final_logit_softcapping": 20.0,
    "llama.logit_scale": 1.0,
    "llama.pooling_type": 0,
    "llama.residual_scale": 1.0,
    "llama.rope.freq_base_swa": 10000.0,
    "llama.rope.scale_linear": 1.0,
    "llama.rope.scaling.attn_factor": 1.0,
    "llama.rope.scaling.factor": 2.0,
    "llama.rope.scaling.original_context_length": 64,
    "llama.rope.scaling.type": "yarn",
    "llama.rope.scaling.yarn_beta_fast": 32.0,
    "llama.rope.scaling.yarn_beta_slow": 1.0,
    "llama.use_parallel_residual": False,
    "split.count": 1,
    "split.no": 0,
    "tokenizer.ggml.add_bos_token": True,
    "tokenizer.ggml.add_eos_token": False,
    "tokenizer.ggml.add_space_prefix": False,
    "tokenizer.ggml.eot_token_id": 0,
}
MISSING = "missing"


def odd_values(tokens):
    nan = float("nan")
    single = [0, 1, -1, 3, 10**9, 2**31, 2**63, 0.0, -1.5, 1e-30, 1e30, nan, float("inf"), True, False]
    texts = ["", "four", "a\0b", "\x1b", "x" * 5000]
    lists = [[], [0], [1, 2], [0.5, nan], ["a", "b"], [True, False]]
    long_lists = [[item] * tokens for item in (-1, 1, 3, 6, 0.5, nan, "", "a", True)]
    return [MISSING, *single, *texts, *lists, *long_lists]


class Metadata(import_case.ImportCase):
    def outcome(self, entries, tensors, build):
        """None: accepted; else the refusal. `build`: the graphs are made as well."""
        self.gguf.write_bytes(tiny_gguf.file_bytes(entries, tensors))
        try:
            source = import_gguf.Source(self.gguf, gguf_parts.read(self.gguf)[1], None)
            import_gguf.model_config(source.header, source.description, source.vocabulary)
            import_gguf.special_tokens(source.vocabulary)
            import_gguf.declared_rope(source.description.decoder)
            if build:
                decoder_graph.build(source.description.decoder, source.weights("f16"), "odd")
                gguf_tokenizer.build(source.vocabulary, {"chat_template": source.vocabulary.chat_template})
        except gguf_header.GgufError as error:
            return str(error)
        return None

    def test_every_entry_as_something_else(self):
        """With a fixed seed: one of the entries, or two, are of another type, huge, negative or not there."""
        generator = random.Random(29)
        vocabularies = ({}, tiny_gguf.sentence_piece(["th", "in", "t", "h", "i", "n", "\u2581"]))
        outcomes = {True: 0, False: 0}
        for vocabulary in vocabularies:
            sound = tiny_gguf.metadata("llama", **vocabulary) | MORE_ENTRIES
            tensors = tiny_gguf.weights(sound, "F16")
            self.assertIsNone(self.outcome(sound, tensors, build=True))
            odd = odd_values(len(sound["tokenizer.ggml.tokens"]))
            cases = [(key, value) for key in sound for value in odd]
            for key, value in generator.sample(cases, 200):
                changed = sound | {key: value}
                if generator.random() < 0.2:
                    changed[generator.choice(list(sound))] = generator.choice(odd)
                entries = {name: item for name, item in changed.items() if not isinstance(item, str) or item != MISSING}
                with self.subTest(key=key, value=gguf_header.shown(value)):
                    refusal = self.outcome(entries, tensors, build=generator.random() < 0.1)
                    outcomes[refusal is None] += 1
                    if refusal is not None:
                        self.assertIn("tiny.gguf: ", refusal)
                        self.assertTrue(refusal.isprintable(), refusal)
                        self.assertLess(len(refusal), 600)
        self.assertGreater(min(outcomes.values()), 60, outcomes)

    def test_files_of_other_kinds(self):
        for changes, words in (
            ({"general__type": "adapter"}, "general.type is 'adapter': an adapter .LoRA"),
            ({"general__type": "mmproj", "general__architecture": "clip"}, "general.type is 'mmproj': the part .* pictures"),
            ({"general__architecture": "clip"}, "general.architecture is 'clip': the part .* pictures"),
            ({"general__type": "imatrix", "general__architecture": None}, "an importance matrix"),
            ({"general__type": "vocab"}, "a vocabulary without a model"),
            ({"general__type": "novel"}, "general.type is 'novel': no model"),
            ({"general__type": [1]}, r"general.type is \[1\]: no model"),
        ):
            self.gguf.write_bytes(tiny_gguf.file_bytes(tiny_gguf.metadata(**changes)))
            self.refuse(f"{words}.*give the file of the language model itself")
        self.gguf.write_bytes(tiny_gguf.file_bytes())
        self.refuse("the file has no tensors: a vocabulary without a model")

    def test_models_that_are_no_decoders(self):
        for changes, words in (
            ({"llama__attention__causal": False}, "attention.causal is False: .*an encoder or embedding model"),
            ({"llama__attention__causal": 0}, "attention.causal is 0, but must be true or false"),
            ({"llama__pooling_type": 3}, "pooling_type is 3: an embedding or ranking model"),
            ({"llama__pooling_type": "mean"}, "pooling_type is 'mean', but must be a number"),
            ({"llama__expert_count": 4}, "expert_count is 4: mixtures of experts"),
            ({"llama__expert_count": "four"}, "expert_count is 'four', but must be a number"),
            ({"llama__use_parallel_residual": True}, "side by side"),
            ({"llama__attention__max_alibi_bias": 8.0}, "max_alibi_bias is 8.0: ALiBi"),
        ):
            self.gguf.write_bytes(tiny_gguf.tiny("llama", **changes))
            self.refuse(words)

    def test_figures_that_would_need_all_memory(self):
        for changes, words in (
            ({"llama__block_count": 2**31 - 1}, "blk.2.attn_k.weight is missing"),
            ({"llama__attention__key_length": 2**30}, "blk.0.attn_q.weight has the shape"),
            ({"llama__attention__head_count": 2**30, "llama__attention__head_count_kv": 1}, "has the shape"),
        ):
            entries = tiny_gguf.metadata(**changes)
            self.gguf.write_bytes(tiny_gguf.file_bytes(entries, tiny_gguf.weights(tiny_gguf.metadata(), "F16")))
            self.refuse(words)

    def test_rope_that_cannot_be(self):
        yarn = {"llama__rope__scaling__type": "yarn", "llama__rope__scaling__factor": 2.0}
        for changes, words in (
            ({"llama__rope__scaling__type": ["yarn"]}, r"rope.scaling.type is \['yarn'\]; none, linear, yarn"),
            ({"llama__rope__scaling__type": "longrope"}, "rope_factors_short.weight is missing"),
            (yarn | {"llama__rope__scaling__yarn_beta_fast": 0.0}, "yarn_beta_fast is 0.0, but must be greater than 0"),
            ({"llama__rope__freq_base_swa": 0.5}, "freq_base_swa is 0.5, but must be greater than 1"),
            ({"llama__attention__sliding_window": "8"}, "sliding_window is '8'"),
            (
                {"llama__attention__sliding_window": 8, "llama__attention__sliding_window_pattern": "all"},
                "sliding_window_pattern is 'all'",
            ),
            (
                {"llama__attention__sliding_window": 8, "llama__attention__sliding_window_pattern": ["a", "b"]},
                "sliding_window_pattern has 2 entries, but must say yes or no for 2 layers",
            ),
        ):
            self.gguf.write_bytes(tiny_gguf.tiny("llama", **changes))
            self.refuse(words)

    def test_tensors_that_one_layer_lacks(self):
        """Norms and biases may be missing in a family, but not in a layer; a model without them would be another model."""
        for architecture, name in (
            ("qwen3", "blk.1.attn_q_norm.weight"),
            ("gemma3", "blk.6.post_ffw_norm.weight"),
            ("gemma2", "blk.0.post_attention_norm.weight"),
            ("qwen2", "blk.1.attn_k.bias"),
        ):
            entries = tiny_gguf.metadata(architecture)
            tensors = tiny_gguf.weights(entries, "F16")
            if architecture != "qwen2":
                tensors = {other: value for other, value in tensors.items() if other[6:] != name[6:]}
            tensors.pop(name, None)
            self.gguf.write_bytes(tiny_gguf.file_bytes(entries, tensors))
            missing = name if architecture == "qwen2" else "blk.0." + name[6:]
            self.refuse(f"the tensor {missing} is missing")

    def test_tokens_that_the_file_names_and_does_not_have(self):
        last = len(tiny_gguf.TOKENS) - 1
        for changes, words in (
            ({"tokenizer__ggml__eos_token_id": 261}, rf"eos_token_id is 261, but must be in \[0, {last + 1}\)"),
            ({"tokenizer__ggml__unknown_token_id": -1}, "unknown_token_id is -1"),
            ({"tokenizer__ggml__bos_token_id": 2**32 - 1, "tokenizer__ggml__add_bos_token": True}, "bos_token_id is 4294"),
        ):
            self.gguf.write_bytes(tiny_gguf.tiny("llama", **changes))
            self.refuse(words)
        # Nothing needs these two, and files have them so.
        entries = tiny_gguf.metadata(tokenizer__ggml__padding_token_id=2**32 - 1, tokenizer__ggml__bos_token_id=-1)
        self.gguf.write_bytes(tiny_gguf.file_bytes(entries, tiny_gguf.weights(entries, "F16")))
        source = import_gguf.Source(self.gguf, gguf_header.read(self.gguf), None)
        self.assertEqual(source.vocabulary.named, {"eos": 2, "unknown": 0})
        config = import_gguf.model_config(source.header, source.description, source.vocabulary)
        self.assertFalse({"bos_token_id", "pad_token_id"} & config.keys())

    def test_a_name_that_is_no_text(self):
        self.gguf = self.folder / "tiny\udcff\x01.gguf"
        self.gguf.write_bytes(tiny_gguf.tiny("llama"))
        self.assertEqual(self.start()[0], 0)


if __name__ == "__main__":
    unittest.main()
