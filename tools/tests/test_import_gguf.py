# SPDX-License-Identifier: Apache-2.0
"""The import of GGUF files: what is refused, what is computed, and a tiny model from end to end."""

import hashlib
import io
import json
import random
import sys
import tempfile
import unittest
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

import gguf_header  # noqa: E402
import gguf_weights  # noqa: E402
import import_gguf  # noqa: E402
import int8_weights  # noqa: E402
import numpy as np  # noqa: E402
import openvino as ov  # noqa: E402
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
        self.refuse(tiny_gguf.file_bytes(version=0x03000000), "version 50331648.*little-endian")

    def test_counts_that_cannot_be(self):
        self.refuse(tiny_gguf.file_bytes(tensor_count=2**63), "number of tensors is 9223372036854775808")
        self.refuse(tiny_gguf.file_bytes(metadata_count=2**40), "number of metadata entries")

    def test_alignment_that_cannot_be(self):
        for alignment in (0, 7):
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


class Unpacking(unittest.TestCase):
    def test_types_that_the_writer_knows(self):
        matrix = np.random.default_rng(1).normal(0, 1, (6, 64)).astype(np.float32)
        for type_name, tolerance in (("F32", 0), ("F16", 1e-3), ("Q8_0", 2e-2), ("Q4_1", 0.3)):
            raw = np.frombuffer(tiny_gguf.pack(matrix, type_name), np.uint8)
            found = gguf_weights.unpack(raw, type_name, 64)
            self.assertEqual(found.shape, matrix.shape)
            np.testing.assert_allclose(found, matrix, rtol=0, atol=tolerance, err_msg=type_name)

    def test_layouts_against_their_definition(self):
        """One block of each type, weight by weight, as the loops of the format's definition have it."""
        generator = np.random.default_rng(2)
        one = np.frombuffer(np.float16(1).tobytes(), np.uint8)
        two = np.frombuffer(np.float16(2).tobytes(), np.uint8)

        def block(*parts):
            return np.concatenate([np.asarray(part, np.uint8) for part in parts])

        low, bits = generator.integers(0, 256, 16), generator.integers(0, 256, 4)
        fifth = [(int(bits[j // 8]) >> (j % 8)) & 1 for j in range(32)]
        nibble = [int(low[j % 16]) >> (4 * (j // 16)) & 15 for j in range(32)]
        expected = {
            "Q4_0": (block(two, low), [2 * (n - 8) for n in nibble]),
            "Q4_1": (block(two, one, low), [2 * n + 1 for n in nibble]),
            "Q5_0": (block(two, bits, low), [2 * ((n | f << 4) - 16) for n, f in zip(nibble, fifth)]),
            "Q5_1": (block(two, one, bits, low), [2 * (n | f << 4) + 1 for n, f in zip(nibble, fifth)]),
        }

        packed, scale_bytes, high = (generator.integers(0, 256, size) for size in (128, 12, 32))

        def scale_and_minimum(group):
            q = [int(byte) for byte in scale_bytes]
            if group < 4:
                return q[group] & 63, q[group + 4] & 63
            return (q[group + 4] & 15) | (q[group - 4] >> 6) << 4, (q[group + 4] >> 4) | (q[group] >> 6) << 4

        def k_weights(with_fifth):
            weights = []
            for group in range(8):
                scale, minimum = scale_and_minimum(group)
                for j in range(32):
                    code = int(packed[group // 2 * 32 + j]) >> (4 * (group % 2)) & 15
                    code |= (int(high[j]) >> group & 1) << 4 if with_fifth else 0
                    weights.append(2 * scale * code - minimum)
            return weights

        expected["Q4_K"] = (block(two, one, scale_bytes, packed), k_weights(False))
        expected["Q5_K"] = (block(two, one, scale_bytes, high, packed), k_weights(True))

        upper, scales = generator.integers(0, 256, 64), generator.integers(-128, 128, 16)
        q6 = []
        for index in range(256):
            half, group, j = index // 128, index % 128 // 32, index % 32
            code = int(packed[64 * half + 32 * (group % 2) + j]) >> (4 * (group // 2)) & 15
            code |= (int(upper[32 * half + j]) >> (2 * group) & 3) << 4
            q6.append(2 * int(scales[index // 16]) * (code - 32))
        expected["Q6_K"] = (block(packed, upper, scales.astype(np.int8).view(np.uint8), two), q6)

        for type_name, (raw, values) in expected.items():
            np.testing.assert_array_equal(gguf_weights.unpack(raw, type_name, len(values))[0], values, type_name)

    def test_matrices_are_found_again(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "tiny.gguf"
            path.write_bytes(tiny_gguf.tiny_llama("Q8_0"))
            header = gguf_header.read(path)
            weights = gguf_weights.GgufWeights(path, header, head_size=16)
            tensor = header.tensors["blk.1.attn_q.weight"]
            raw = np.frombuffer(path.read_bytes(), np.uint8)[tensor.offset_bytes :][: tensor.size_bytes]
            stored = gguf_weights.unpack(raw, "Q8_0", 64)
            # Row r of a head with halves pairing stands at 2 r, or at 2 (r - 8) + 1 in the second half.
            order = [16 * head + (2 * row if row < 8 else 2 * (row - 8) + 1) for head in range(4) for row in range(16)]
            noise = np.random.default_rng(3).normal(0, 0.01, stored.shape).astype(np.float32)
            np.testing.assert_array_equal(weights.values(stored[order] + noise), stored[order])
            self.assertIsNone(weights.values(stored[order]), "a matrix of the file is given out once")
            self.assertIsNone(weights.values(noise * 10))


def model_of(weight, transposed=True, columns=None):
    """An IR that multiplies its input by `weight`, an output of the graph."""
    data = ops.parameter([-1, columns], np.float32, name="data")
    product = ops.matmul(data, weight, False, transposed)
    return ov.Model([product], [data], "product")


def run(model, data):
    compiled = ov.Core().compile_model(
        model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    )
    return compiled([data])[0]


class Int8(unittest.TestCase):
    def setUp(self):
        self.generator = np.random.default_rng(5)

    def normal(self, *shape):
        return self.generator.normal(0, 1, shape).astype(np.float32)

    def test_rounding(self):
        weight = self.normal(10, 64) * np.logspace(-6, 6, 10, dtype=np.float32)[:, None]
        weight[3] = 0
        quantised = int8_weights.quantise(weight, 1)
        self.assertEqual(quantised.scales.shape, (10, 1))
        half_a_step = np.abs(weight).max(axis=1, keepdims=True) / 127 / 2
        self.assertTrue((np.abs(quantised.values * quantised.scales - weight) <= half_a_step * 1.0001).all())
        # Symmetric: the lowest code of int8 is never used, so that negating a weight negates its code.
        negated = int8_weights.quantise(-weight, 1)
        np.testing.assert_array_equal(negated.values, -quantised.values)
        self.assertEqual(np.abs(quantised.values[[0, 9]].astype(int)).max(), 127)

    def check_model(self, model, expected_weight, data):
        """`model` has to compute with `expected_weight` before, and with its int8 rounding after the conversion."""
        np.testing.assert_allclose(run(model, data), data @ expected_weight.T, rtol=1e-3, atol=1e-2)
        summary = int8_weights.convert(model)
        self.assertEqual((summary.matrices, summary.weights), (1, expected_weight.size))
        quantised = int8_weights.quantise(expected_weight, 1)
        rounded = quantised.values * quantised.scales
        self.assertAlmostEqual(
            summary.relative_error,
            np.linalg.norm(rounded - expected_weight) / np.linalg.norm(expected_weight),
            places=5,
        )
        np.testing.assert_allclose(run(model, data), data @ rounded.T, rtol=1e-4, atol=1e-3)
        self.assertIn("i8", {node.get_output_element_type(0).get_type_name() for node in model.get_ops()})
        self.assertEqual(int8_weights.convert(model).matrices, 0, "a second conversion finds nothing to do")

    def test_plain_and_half_constants(self):
        for transposed in (True, False):
            weight = self.normal(24, 32)
            stored = weight if transposed else np.ascontiguousarray(weight.T)
            self.check_model(model_of(ops.constant(stored), transposed, 32), weight, self.normal(3, 32))
            half = stored.astype(np.float16)
            expected = half.astype(np.float32) if transposed else half.astype(np.float32).T
            model = model_of(ops.convert(ops.constant(half), "f32"), transposed, 32)
            self.check_model(model, np.ascontiguousarray(expected), self.normal(3, 32))

    def test_groups_of_four_bits(self):
        codes = self.generator.integers(0, 16, (24, 2, 16), dtype=np.uint8)
        zeros = self.generator.integers(4, 12, (24, 2, 1), dtype=np.uint8)
        scales = self.generator.uniform(0.01, 0.1, (24, 2, 1)).astype(np.float16)

        def four_bits(values):
            packed = values.reshape(-1, 2)
            packed = np.ascontiguousarray(packed[:, 0] | (packed[:, 1] << 4))
            # The constant refers to this memory and does not hold it.
            self.addCleanup(lambda: packed)
            return ops.constant(ov.Tensor(packed, ov.Shape(values.shape), ov.Type.u4))

        difference = ops.subtract(ops.convert(four_bits(codes), "f16"), ops.convert(four_bits(zeros), "f16"))
        grouped = ops.multiply(difference, ops.constant(scales))
        flat = ops.reshape(grouped, ops.constant(np.array([24, 32], np.int64)), False)
        expected = ((codes.astype(np.float32) - zeros) * scales.astype(np.float32)).reshape(24, 32)
        self.check_model(model_of(ops.convert(flat, "f32"), True, 32), expected, self.normal(3, 32))

    def test_shared_embedding_stays_shared(self):
        table = ops.constant(self.normal(50, 16))
        tokens = ops.parameter([-1], np.int32, name="tokens")
        embedded = ops.gather(table, tokens, ops.constant(np.int32(0)))
        logits = ops.matmul(embedded, table, False, True)
        model = ov.Model([logits], [tokens], "tied")
        self.assertEqual(int8_weights.convert(model).matrices, 1)
        constants = [node for node in model.get_ops() if node.get_type_name() == "Constant"]
        self.assertEqual(sum(node.get_output_element_type(0) == ov.Type.i8 for node in constants), 1)
        self.assertFalse(
            any(
                node.get_output_shape(0) == ov.Shape([50, 16]) and node.get_output_element_type(0) == ov.Type.f32
                for node in constants
            )
        )

    def test_products_of_activations_and_vectors_are_left_alone(self):
        data = ops.parameter([4, 4], np.float32, name="data")
        model = ov.Model(
            [ops.matmul(data, ops.multiply(data, ops.constant(np.float32(2))), False, True)], [data], "none"
        )
        self.assertEqual(int8_weights.convert(model).matrices, 0)

    def test_values_that_are_not_numbers(self):
        weight = self.normal(4, 8)
        weight[1, 2] = np.inf
        self.assertRaisesRegex(ValueError, "not numbers", int8_weights.convert, model_of(ops.constant(weight), True, 8))


class Import(unittest.TestCase):
    def setUp(self):
        self._folder = tempfile.TemporaryDirectory()
        self.addCleanup(self._folder.cleanup)
        self.folder = Path(self._folder.name)
        self.gguf = self.folder / "tiny.gguf"
        self.output = self.folder / "models" / "tiny"

    def start(self, *arguments, gguf=None):
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            try:
                status = import_gguf.main(["--gguf", str(gguf or self.gguf), "--out", str(self.output), *arguments])
            except SystemExit as left:
                status = left.code
        return status, out.getvalue(), err.getvalue()

    def refuse(self, words, *arguments, status=1, gguf=None):
        found, _, err = self.start(*arguments, gguf=gguf)
        self.assertEqual(found, status, err)
        self.assertRegex(err, words)
        if status == 1:
            self.assertEqual(err.count("\n"), 1, err)
        self.assertFalse((self.output / "openvino_model.xml").exists())
        self.assertEqual([path.name for path in self.output.parent.glob(".importing-*")], [])

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
            "eos_token_id": 2,
            "pad_token_id": 2,
        }
        self.assertEqual({key: config[key] for key in expected}, expected)
        self.assertEqual(config["carousel"]["source_sha256"], checksum)
        check = config["carousel"]["check"]
        # The reader rounds the groups' offsets; int8 from the file's own values has to be far closer to the file.
        self.assertLess(check["int8_to_file"]["kl"], 1e-3)
        self.assertLess(check["int8_to_file"]["kl"] * 20, check["reader_to_file"]["kl"])
        turns = json.loads((self.output / "turn_format.json").read_text())
        self.assertEqual(turns["roles"]["user"], {"before": "<|im_start|>user:", "after": "<|im_end|>"})
        self.assertEqual([path.name for path in self.output.parent.iterdir()], ["tiny"])
        self.assertFalse((self.output / "tiny.gguf").exists())

        self.assertRegex(self.start()[2], "--out is not empty.*--force")
        self.assertEqual(self.start("--force", "--weights", "original")[0], 0)
        self.assertEqual(json.loads((self.output / "config.json").read_text())["carousel"]["weights"], "original")
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

    def test_models_that_the_reader_would_not_read_or_read_wrongly(self):
        for changes, words in (
            ({"general__architecture": "gemma3"}, "general.architecture is 'gemma3'.*llama, qwen2, qwen3"),
            ({"general__architecture": None}, "general.architecture is None"),
            ({"llama__rope__scaling__type": "yarn"}, "rope.scaling.type is 'yarn'"),
            ({"llama__block_count": 0}, "llama.block_count is 0"),
            ({"llama__attention__head_count": "four"}, "head_count is 'four'"),
        ):
            self.gguf.write_bytes(tiny_gguf.file_bytes(tiny_gguf.metadata(**changes)))
            self.refuse(words)
        factors = {"rope_freqs.weight": (np.ones(8, np.float32), "F32")}
        self.gguf.write_bytes(tiny_gguf.file_bytes(tiny_gguf.metadata(), factors))
        self.refuse("rope_freqs.weight")

    def test_tensors_missing(self):
        self.gguf.write_bytes(tiny_gguf.file_bytes())
        self.refuse("reader cannot import it")

    def test_output_is_a_file(self):
        self.gguf.write_bytes(tiny_gguf.tiny_llama())
        self.output.parent.mkdir()
        self.output.write_text("mine")
        self.refuse("--out is a file")
        self.assertEqual(self.output.read_text(), "mine")


if __name__ == "__main__":
    unittest.main()
