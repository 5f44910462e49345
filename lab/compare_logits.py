#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compares an import's predictions with llama.cpp's on the same GGUF file, token by token.

    lab/compare_logits.py --gguf model.gguf --model models/imported [--model models/other] --text book.txt
    lab/compare_logits.py --architectures

Both read the same tokens, teacher-forced. Printed are the share of places where both find the same token most likely, the
mean KL divergence of the import's prediction from llama.cpp's, and both perplexities.

llama.cpp rounds activations to 8 bits before they meet quantised weights. With --unpacked it runs on a copy of the file
whose weights are unpacked to float32, so that nothing is rounded: what is then left is the import's own difference.

--architectures compares a tiny random decoder of every architecture that the importer knows: no weights are needed to see
whether both read a file's metadata alike.

It needs llama-cpp-python (pip install llama-cpp-python), which is no requirement of this project; without it nothing is
compared, and the exit status is 77.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
SKIPPED = 77
CHUNK = 128


def load_llama_cpp():
    try:
        import llama_cpp
    except ImportError:
        print(
            "compare_logits: skipped: llama-cpp-python is not installed (pip install llama-cpp-python)", file=sys.stderr
        )
        sys.exit(SKIPPED)
    return llama_cpp


def write_unpacked(source: Path, target: Path) -> None:
    """A copy of the GGUF file whose tensors are float32."""
    import gguf

    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, architecture)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        item_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], item_type)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        writer.add_tensor(tensor.name, values.reshape(tuple(reversed(tensor.shape.tolist()))))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


class LlamaCpp:
    """Log probabilities of llama.cpp, a chunk at a time."""

    def __init__(self, llama_cpp, path: Path, context: int) -> None:
        self.model = llama_cpp.Llama(
            str(path),
            n_ctx=context,
            n_batch=CHUNK,
            n_ubatch=CHUNK,
            n_threads=2,
            logits_all=True,
            verbose=False,
            n_gpu_layers=0,
        )
        self.model.reset()

    def tokens(self, text: str) -> list[int]:
        return self.model.tokenize(text.encode(), add_bos=True, special=False)

    def chunk(self, tokens: list[int]) -> np.ndarray:
        begin = self.model.n_tokens
        self.model.eval(tokens)
        return log_softmax(np.array(self.model.scores[begin : begin + len(tokens)], np.float32))


class Imported:
    """Log probabilities of an imported model, as OpenVINO runs it by itself."""

    def __init__(self, folder: Path) -> None:
        import model_check

        self.stepper = model_check.Stepper(folder / "openvino_model.xml")

    def chunk(self, tokens: list[int]) -> np.ndarray:
        return log_softmax(self.stepper.step(np.array(tokens, np.int64)))


class Sums:
    def __init__(self) -> None:
        self.kl, self.same, self.places, self.nll, self.predicted = 0.0, 0, 0, 0.0, 0

    def add(self, reference: np.ndarray, other: np.ndarray, following: list[int]) -> None:
        self.kl += float(np.sum(np.exp(reference) * (reference - other), dtype=np.float64))
        self.same += int((reference.argmax(-1) == other.argmax(-1)).sum())
        self.places += len(reference)
        self.nll -= float(other[np.arange(len(following)), following].sum(dtype=np.float64))
        self.predicted += len(following)


def compare_architectures(llama_cpp) -> int:
    """Logits of each tiny decoder; returns how many differ by more than llama.cpp's rounding of activations to halves."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools" / "tests"))
    import decoder_graph
    import gguf_header
    import import_gguf
    import model_check
    import tiny_gguf

    differing = 0
    tokens = np.random.default_rng(0).integers(3, len(tiny_gguf.TOKENS), 100)
    with tempfile.TemporaryDirectory() as folder:
        for architecture in tiny_gguf.ARCHITECTURES:
            path = Path(folder) / f"{architecture}.gguf"
            path.write_bytes(tiny_gguf.tiny(architecture))
            reference = LlamaCpp(llama_cpp, path, 120).model
            reference.eval(tokens.tolist())
            wanted = np.array(reference.scores[: len(tokens)])
            source = import_gguf.Source(path, gguf_header.read(path), None)
            graph = decoder_graph.build(source.description.decoder, source.weights("f16"), architecture)
            found = model_check.Stepper(graph).step(tokens)
            largest = float(np.abs(found - wanted).max() / wanted.std())
            differing += largest > 0.02
            print(f"{architecture}: largest difference of {wanted.size:,} logits {largest:.4f} of their deviation")
    return differing


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architectures", action="store_true", help="compare tiny random models; needs no other flag")
    parser.add_argument("--gguf", type=Path, metavar="FILE")
    parser.add_argument(
        "--model", type=Path, action="append", default=[], metavar="DIR", help="an import of FILE; repeatable"
    )
    parser.add_argument("--text", type=Path, metavar="FILE")
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--unpacked", action="store_true", help="let llama.cpp run on weights unpacked to float32")
    options = parser.parse_args()
    llama_cpp = load_llama_cpp()
    if options.architectures:
        return min(compare_architectures(llama_cpp), 1)
    if not (options.gguf and options.model and options.text):
        parser.error("give --gguf, --model and --text, or --architectures")
    text = options.text.read_text(encoding="utf-8")[: options.tokens * 16]
    with tempfile.TemporaryDirectory() as folder:
        path = options.gguf
        if options.unpacked:
            path = Path(folder) / "unpacked.gguf"
            write_unpacked(options.gguf, path)
        reference = LlamaCpp(llama_cpp, path, options.tokens + CHUNK)
    tokens = reference.tokens(text)[: options.tokens]
    imports = {folder: Imported(folder) for folder in options.model}
    sums = {folder: Sums() for folder in options.model}
    own = Sums()
    for begin in range(0, len(tokens), CHUNK):
        step = tokens[begin : begin + CHUNK]
        following = tokens[begin + 1 : begin + len(step) + 1]
        wanted = reference.chunk(step)
        own.add(wanted, wanted, following)
        for folder, imported in imports.items():
            sums[folder].add(wanted, imported.chunk(step), following)
    kind = "unpacked to float32" if options.unpacked else "as in the file"
    print(f"{len(tokens)} tokens; llama.cpp, weights {kind}: perplexity {np.exp(own.nll / own.predicted):.4f}")
    for folder, found in sums.items():
        print(
            f"{folder}: perplexity {np.exp(found.nll / found.predicted):.4f}, same first choice {100 * found.same / found.places:.2f} %, "
            f"mean KL {found.kl / found.places:.2e}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
