# SPDX-License-Identifier: Apache-2.0
"""The import of GGUF files: what is refused, what is computed, and a tiny model from end to end."""

import hashlib
import json
import random
import sys
import tempfile
import unittest
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

import decoder_graph  # noqa: E402
import gguf_architectures  # noqa: E402
import gguf_header  # noqa: E402
import gguf_tokenizer  # noqa: E402
import import_case  # noqa: E402
import import_gguf  # noqa: E402
import matrix_codes  # noqa: E402
import model_check  # noqa: E402
import numpy as np  # noqa: E402
import openvino as ov  # noqa: E402
import reference_decoder  # noqa: E402
import tiny_gguf  # noqa: E402
from openvino import opset13 as ops  # noqa: E402


def parse(data):
    return gguf_header.parse(data, "file.gguf")


class Header(unittest.TestCase):
    def refuse(self, data, words):
        with self.assertRaisesRegex(gguf_header.GgufError, words) as caught:
            parse(data)
        self.assertNotIn("\n", str(caught.exception))
        self.assertIn("file.gguf", str(caught.exception))

    def test_sound_file(self):
        header = parse(tiny_gguf.tiny_llama())
        self.assertEqual(header.get("block_count"), 2)
        self.assertEqual(header.metadata["tokenizer.ggml.merges"], ["t h", "i n"])
        self.assertEqual(header.tensors["blk.1.ffn_down.weight"].shape, (64, 96))
        self.assertEqual(header.tensors["blk.1.ffn_down.weight"].size_bytes, 64 * 96 // 32 * 20)

    def test_foreign_files(self):
        self.refuse(b"", "not a GGUF file")
        self.refuse(b"\x7fELF" + bytes(100), "not a GGUF file.*ELF")
        self.refuse(b"ggjt" + bytes(100), "not a GGUF file")
        self.refuse(tiny_gguf.file_bytes(version=1), "version 1")
        self.refuse(tiny_gguf.file_bytes(version=9), "version 9 is not supported")
        self.refuse(tiny_gguf.file_bytes(version=0x03000000), "big-endian.*gguf_convert_endian")

    def test_counts_that_cannot_be(self):
        self.refuse(tiny_gguf.file_bytes(tensor_count=2**63), "number of tensors is 9223372036854775808")
        self.refuse(tiny_gguf.file_bytes(metadata_count=2**40), "number of metadata entries")

    def test_an_entry_that_is_there_twice(self):
        data = tiny_gguf.file_bytes({"general.name": "a", "general.mane": "b"})
        self.refuse(data.replace(b"general.mane", b"general.name"), "general.name is there twice")

    def test_alignment_that_cannot_be(self):
        for alignment in (0, 7, -8, True, 8.0, "8", 2**63 + 1):
            self.refuse(tiny_gguf.file_bytes(tiny_gguf.metadata(general__alignment=alignment)), "general.alignment")

    def test_every_truncation_is_refused(self):
        # Few letters, so that every single length can be tried.
        entries = {"general.architecture": "llama", "x": [1, 2, 3], "y": ["a", "bc"], "z": 1.5}
        tensors = {"w": (np.zeros((2, 32), np.float32), "Q4_1"), "v": (np.zeros(5, np.float32), "F32")}
        data = tiny_gguf.file_bytes(entries, tensors)
        last = max(tensor.offset_bytes + tensor.size_bytes for tensor in parse(data).tensors.values())
        for length in range(last):
            self.refuse(data[:length], "")

    def test_flipped_bits_never_surprise(self):
        data = tiny_gguf.tiny_llama()
        header_bytes = parse(data).tensors["token_embd.weight"].offset_bytes
        generator = random.Random(11)
        refused = 0
        for _ in range(1500):
            damaged = bytearray(data)
            for _ in range(generator.randint(1, 3)):
                damaged[generator.randrange(header_bytes)] ^= 1 << generator.randrange(8)
            try:
                parse(bytes(damaged))
            except gguf_header.GgufError:
                refused += 1
        self.assertGreater(refused, 100)


class Codes(unittest.TestCase):
    """The forms that weights are kept in."""

    def setUp(self):
        self.generator = np.random.default_rng(5)

    def normal(self, *shape):
        return self.generator.normal(0, 1, shape).astype(np.float32)

    def test_int8_rounds_to_the_nearest_step_of_its_row(self):
        weight = self.normal(10, 64) * np.logspace(-6, 6, 10, dtype=np.float32)[:, None]
        weight[3] = 0
        codes, scales = matrix_codes.int8_rows(weight)
        half_a_step = np.abs(weight).max(axis=1, keepdims=True) / 127 / 2
        self.assertTrue((np.abs(codes * scales - weight) <= half_a_step * 1.0001).all())
        # Symmetric: the lowest code of int8 is never used, so that negating a weight negates its code.
        np.testing.assert_array_equal(matrix_codes.int8_rows(-weight)[0], -codes)
        self.assertEqual(np.abs(codes[[0, 9]].astype(int)).max(), 127)

    def test_int4_gives_groups_of_sixteen_levels_back_exactly(self):
        steps, lowest = np.float16(0.25), np.float16(-3.5)
        weight = (lowest + steps * self.generator.integers(0, 16, (4, 64))).astype(np.float32)
        weight[:, ::32], weight[:, 1::32] = lowest, lowest + 15 * steps
        codes, scales, zeros = matrix_codes.int4_rows(weight)
        read = (codes - zeros.astype(np.float32)) * scales.astype(np.float32)
        np.testing.assert_array_equal(read.reshape(weight.shape), weight)
        flat = np.full((2, 32), 7, np.float32)
        codes, scales, zeros = matrix_codes.int4_rows(flat)
        np.testing.assert_array_equal(((codes - zeros.astype(np.float32)) * scales).reshape(2, 32), flat)

    def test_graphs_compute_with_the_codes(self):
        """`encode` in a MatMul: the product is that with the values, up to the error that it reports."""
        weight, data = self.normal(24, 64), self.normal(3, 64)
        for kind, most in (("f16", 1e-3), ("int8", 0.01), ("int4", 0.15)):
            error = matrix_codes.Error()
            node = matrix_codes.encode(kind, iter([weight[:5], weight[5:]]), weight.shape, "w", error)
            self.assertEqual((error.matrices, error.weights), (1, weight.size))
            self.assertLess(error.relative, most)
            parameter = ops.parameter([-1, 64], np.float32)
            model = ov.Model([ops.matmul(parameter, node, False, True)], [parameter], kind)
            exact = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
            found = ov.Core().compile_model(model, "CPU", exact)([data])[0]
            distance = np.linalg.norm(found - data @ weight.T) / np.linalg.norm(data @ weight.T)
            self.assertLess(distance, 3 * error.relative + 1e-6, kind)
            self.assertGreater(distance, error.relative / 3, kind)

    def test_what_half_precision_cannot_hold_is_refused(self):
        weight = np.full((2, 32), 70000, np.float32)
        self.assertRaisesRegex(
            ValueError, "use int8", matrix_codes.encode, "f16", iter([weight]), (2, 32), "w", matrix_codes.Error()
        )


class Architectures(unittest.TestCase):
    """Each architecture of the table, random and tiny, against the slow judge."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name) / "tiny.gguf"

    def source(self, data, window=None):
        self.path.write_bytes(data)
        return import_gguf.Source(self.path, gguf_header.read(self.path), window)

    def check(self, architecture, more_tensors=None, **changes):
        entries = tiny_gguf.metadata(architecture, **changes)
        tensors = tiny_gguf.weights(entries, "F16") | (more_tensors or {})
        # What is in the file is rounded to half precision.
        tensors = {
            name: (np.float16(values) if kind == "F16" else values, kind) for name, (values, kind) in tensors.items()
        }
        source = self.source(tiny_gguf.file_bytes(entries, tensors))
        model = decoder_graph.build(source.description.decoder, source.weights("f16"), "tiny")
        tokens = np.random.default_rng(3).integers(0, len(tiny_gguf.TOKENS), 30)
        wanted = reference_decoder.ReferenceDecoder(entries, tensors).logits(tokens)
        stepper = model_check.Stepper(model)
        begin = 0
        for count in (11, 1, 1, 17):
            found = stepper.step(tokens[begin : begin + count])
            np.testing.assert_allclose(
                found,
                wanted[begin : begin + count],
                rtol=2e-3,
                atol=2e-3,
                err_msg=f"{architecture}, tokens from {begin}",
            )
            begin += count
        self.assertGreater(wanted.std(), 0.05)
        return source.description

    def test_every_one_equals_the_reference(self):
        self.assertEqual(set(tiny_gguf.ARCHITECTURES), set(gguf_architectures.ARCHITECTURES))
        for architecture in tiny_gguf.ARCHITECTURES:
            with self.subTest(architecture):
                self.check(architecture)

    def test_rope_factors_of_llama_3(self):
        factors = np.array([1, 1, 1.5, 2, 4, 8, 8, 8], np.float32)
        found = self.check("llama", {"rope_freqs.weight": (factors, "F32")})
        self.assertAlmostEqual(found.decoder.layers[0].rope.frequencies[7], 10000 ** (-7 / 8) / 8)

    def test_linear_scaling(self):
        scaling = {"gemma3__rope__scaling__type": "linear", "gemma3__rope__scaling__factor": 8.0}
        found = self.check("gemma3", **scaling)
        # Of the layers that see everything, and no others.
        self.assertEqual(found.decoder.layers[5].rope.frequencies[0], 1 / 8)
        self.assertEqual(found.decoder.layers[0].rope.frequencies[0], 1)

    def test_yarn(self):
        entries = {
            "qwen2__rope__scaling__type": "yarn",
            "qwen2__rope__scaling__factor": 4.0,
            "qwen2__context_length": 512,
        }
        entries["qwen2__rope__scaling__original_context_length"] = 128
        rope = self.source(tiny_gguf.tiny("qwen2", **entries)).description.decoder.layers[0].rope
        self.assertAlmostEqual(rope.attention_factor, 0.1 * np.log(4) + 1)
        self.assertEqual(rope.frequencies[0], 1.0)
        self.assertAlmostEqual(rope.frequencies[7], 10000 ** (-7 / 8) / 4)

    def test_windows_and_patterns(self):
        layers = self.source(tiny_gguf.tiny("gemma3")).description.decoder.layers
        self.assertEqual([layer.window for layer in layers], [8, 8, 8, 8, 8, 0, 8])
        layers = self.source(tiny_gguf.tiny("gemma2")).description.decoder.layers
        self.assertEqual([layer.window for layer in layers], [8, 0])
        layers = self.source(tiny_gguf.tiny("llama", llama__attention__sliding_window=64)).description.decoder.layers
        self.assertEqual([layer.window for layer in layers], [64, 64])
        layers = self.source(tiny_gguf.tiny("smollm3")).description.decoder.layers
        self.assertEqual([layer.rope is None for layer in layers], [False, False, False, True])

    def test_factors_follow_the_window(self):
        data = tiny_gguf.tiny("phi3")
        self.assertAlmostEqual(
            self.source(data).description.decoder.layers[0].rope.frequencies[5], 10000 ** (-5 / 6) / 4
        )
        short = self.source(data, window=128).description
        self.assertAlmostEqual(short.decoder.layers[0].rope.frequencies[5], 10000 ** (-5 / 6) / 1.5)
        self.assertEqual(short.trained_window, 128)


class Import(import_case.ImportCase):
    def test_tiny_model(self):
        self.gguf.write_bytes(tiny_gguf.tiny_llama("Q4_1"))
        checksum = hashlib.sha256(self.gguf.read_bytes()).hexdigest()
        status, out, err = self.start("--expect-sha256", checksum.upper())
        self.assertEqual((status, err), (0, ""))
        self.assertIn("turn format: reducible", out)
        config = json.loads((self.output / "config.json").read_text())
        expected = {
            "model_type": "llama",
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "hidden_size": 64,
            "intermediate_size": 96,
            "vocab_size": 261,
            "rope_theta": 10000.0,
            "max_position_embeddings": 128,
            "bos_token_id": 1,
            "eos_token_id": [2, 0],  # and what its name says ends a turn
            "pad_token_id": 2,
        }
        self.assertEqual({key: config[key] for key in expected}, expected)
        self.assertEqual(config["carousel"]["source_sha256"], checksum)
        check = config["carousel"]["check"]
        self.assertLess(check["kl_to_f16"], 1e-3)
        self.assertGreater(check["kl_to_f16"], 0)
        rope = config["carousel"]["rope"]
        self.assertEqual(rope["layers"], [0, 0])
        np.testing.assert_allclose(rope["tables"][0]["frequencies"], 10000.0 ** (-np.arange(8) / 8))
        turns = json.loads((self.output / "turn_format.json").read_text())
        user = turns["roles"]["user"]
        self.assertEqual((user["before"], user["after"]), ("<|im_start|>user:", "<|im_end|>"))
        self.assertEqual([path.name for path in self.output.parent.iterdir()], ["tiny"])
        self.assertFalse((self.output / "tiny.gguf").exists())

        self.assertRegex(self.start()[2], "--out is not empty.*--force")
        self.assertEqual(self.start("--force", "--weights", "int4")[0], 0)
        self.assertEqual(json.loads((self.output / "config.json").read_text())["carousel"]["weights"], "int4")
        self.assertEqual([path.name for path in self.output.parent.iterdir()], ["tiny"])

    def test_usage(self):
        self.refuse("64 hexadecimal digits", "--expect-sha256", "12", status=2)
        self.refuse("--weights", "--weights", "int3", status=2)

    def test_files(self):
        self.refuse("--gguf is not a file")
        self.gguf.write_bytes(b"")
        self.refuse("empty file")
        self.gguf.write_bytes(b"PK\x03\x04" + bytes(50))
        self.refuse("not a GGUF file")
        whole = tiny_gguf.tiny_llama()
        self.gguf.write_bytes(whole[: len(whole) // 2])
        self.refuse("truncated")
        self.gguf.write_bytes(whole)
        self.refuse("sha256 is .* expected 0000", "--expect-sha256", "0" * 64)

    def test_models_that_cannot_be_built(self):
        for changes, words in (
            ({"general__architecture": "mamba"}, "general.architecture is 'mamba'.*llama, .*gemma3.*optimum-cli"),
            ({"general__architecture": None}, "general.architecture is None"),
            ({"llama__expert_count": 8}, "mixtures of experts"),
            ({"llama__rope__scaling__type": "spiral"}, "rope.scaling.type is 'spiral'"),
            ({"llama__rope__freq_base": 0.5}, "rope.freq_base is 0.5"),
            ({"llama__rope__dimension_count": 99}, "rope.dimension_count is 99"),
            ({"llama__block_count": 0}, "llama.block_count is 0"),
            ({"llama__block_count": 3}, "blk.2.attn_k.weight is missing"),
            ({"llama__block_count": 1}, "blk.1.attn_norm.weight is none that"),
            ({"llama__attention__head_count": "four"}, "head_count is 'four'"),
            ({"llama__attention__head_count_kv": 3}, "4 query heads cannot share 3"),
            ({"llama__feed_forward_length": 97}, "ffn_gate.weight has the shape .*97"),
            ({"tokenizer__ggml__model": "bert"}, "tokenizer.ggml.model is 'bert'"),
        ):
            entries = tiny_gguf.metadata(**changes)
            self.gguf.write_bytes(tiny_gguf.file_bytes(entries, tiny_gguf.weights(tiny_gguf.metadata(), "F16")))
            self.refuse(words)
        self.gguf.write_bytes(
            tiny_gguf.tiny("llama", more_tensors={"blk.0.ssm.weight": (np.ones((4, 4), np.float32), "F32")})
        )
        self.refuse("blk.0.ssm.weight is none that")
        self.gguf.write_bytes(
            tiny_gguf.tiny("llama", more_tensors={"rope_freqs.weight": (np.zeros(8, np.float32), "F32")})
        )
        self.refuse("rope_freqs.weight has 8 factors")
        self.gguf.write_bytes(tiny_gguf.tiny("llama"))
        self.refuse("--window is 129.*trained on 128", "--window", "129")

    def test_tensors_missing(self):
        tensors = tiny_gguf.weights(tiny_gguf.metadata(), "F16")
        for name in ("token_embd.weight", "output_norm.weight", "blk.1.attn_v.weight", "blk.0.ffn_up.weight"):
            left = {other: value for other, value in tensors.items() if other != name}
            self.gguf.write_bytes(tiny_gguf.file_bytes(tensors=left))
            self.refuse(f"{name} is missing")

    def test_weights_that_are_not_numbers(self):
        damaged = {"blk.1.ffn_up.weight": (np.full((96, 64), np.inf, np.float32), "F32")}
        self.gguf.write_bytes(tiny_gguf.tiny("llama", more_tensors=damaged))
        self.refuse("blk.1.ffn_up.weight holds values that are not numbers")

    def test_damaged_files_are_refused_in_one_line_or_imported(self):
        """Flipped bits, cuts and stretches of other bytes, with a fixed seed; nothing may end in anything but an answer."""
        whole = tiny_gguf.tiny("gemma3", "Q8_0", gemma3__block_count=2)
        header_bytes = gguf_header.parse(whole, "tiny").tensors["token_embd.weight"].offset_bytes
        generator = random.Random(23)
        refused = 0
        for _ in range(200):
            damaged = bytearray(whole)
            for _ in range(generator.randint(1, 3)):
                # Of the header's bits two thirds: weights are only numbers.
                end = min(header_bytes, len(damaged)) if generator.random() < 0.67 else len(damaged)
                at = generator.randrange(end)
                kind = generator.randrange(4)
                if kind == 0:
                    damaged[at : at + 8] = generator.randbytes(8)
                elif kind == 1 and generator.random() < 0.3:
                    damaged = damaged[: max(at, 16)]
                else:
                    damaged[at] ^= 1 << generator.randrange(8)
            self.gguf.write_bytes(bytes(damaged))
            try:
                source = import_gguf.Source(self.gguf, gguf_header.read(self.gguf), None)
                decoder_graph.build(source.description.decoder, source.weights("int8"), "damaged")
                gguf_tokenizer.build(source.vocabulary, {})
            except gguf_header.GgufError as error:
                refused += 1
                self.assertIn("tiny.gguf", str(error))
                self.assertNotIn("\n", str(error))
        self.assertGreater(refused, 60)

    def test_output_is_a_file(self):
        self.gguf.write_bytes(tiny_gguf.tiny_llama())
        self.output.parent.mkdir()
        self.output.write_text("mine")
        self.refuse("--out is a file")
        self.assertEqual(self.output.read_text(), "mine")


if __name__ == "__main__":
    unittest.main()
