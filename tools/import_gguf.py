#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Imports a language model from a GGUF file: writes a folder with an OpenVINO model, its tokenizer and their description.

The graph and the tokenizer come from openvino-genai's GGUF reader. With --weights int8 (the default) the weight matrices
are then replaced by int8 ones, rounded from the file's own values, which is faster on processors without int8 dot products
and closer to the file than the reader's 4-bit weights, see gguf_weights.py. --weights original leaves the reader's as
they are.

The folder appears only when it is complete and has been run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import gguf_header
import prepare_model

# `./run setup` imports the default model again when this changes: raise it when what is written changes.
IMPORTER_VERSION = 1

# What openvino-genai's reader can build a graph for, by the file's general.architecture.
ARCHITECTURES = ("llama", "qwen2", "qwen3")
PREFIX = "import_gguf"
READER_TIME_LIMIT_SECONDS = 1800
# Above this many weights the comparison with the file's values, held as float32, would need gigabytes.
MOST_WEIGHTS_COMPARED = 500_000_000
# Rounding to int8 moves the distribution by some thousandths of a nat; this much means that something went wrong.
LARGEST_SOUND_KL = 0.5

# Runs in a process of its own, because the reader trusts the file and a fault in it ends the process.
_READER = "import sys, openvino_genai\n" "openvino_genai.LLMPipeline(sys.argv[1], 'CPU', enable_save_ov_model=True)\n"


class ImportFailed(Exception):
    """The import cannot be done; the message is one line for the user."""


def say(text: str) -> None:
    print(f"{PREFIX}: {text}", flush=True)


# --- Before anything is written -----------------------------------------------------------------------------------


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_checksum(path: Path, expected: str | None) -> str:
    found = sha256(path)
    if expected and found != expected.lower():
        raise ImportFailed(
            f"{path}: sha256 is {found}, expected {expected.lower()}; the file is damaged or another version: "
            "fetch it again, or leave out --expect-sha256 to import it as it is"
        )
    return found


def check_readable(header: gguf_header.GgufHeader, path: Path) -> None:
    """Refuses what openvino-genai's reader would refuse, and what it would read wrongly without a word."""
    architecture = header.metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise ImportFailed(
            f"{path}: general.architecture is {architecture!r}, but openvino-genai's GGUF reader knows only "
            f"{', '.join(ARCHITECTURES)}; export the model to OpenVINO from its original weights instead"
        )
    scaling = header.get("rope.scaling.type", "none")
    if scaling != "none" or "rope_freqs.weight" in header.tensors:
        what = f"rope.scaling.type is {scaling!r}" if scaling != "none" else "it has the tensor rope_freqs.weight"
        raise ImportFailed(
            f"{path}: {what}, and openvino-genai's GGUF reader leaves such scaling of RoPE out, so the result would be "
            "another model; export the model to OpenVINO from its original weights instead"
        )
    for key in ("block_count", "embedding_length", "feed_forward_length", "attention.head_count"):
        value = header.get(key)
        if not isinstance(value, int) or value <= 0:
            raise ImportFailed(f"{path}: {architecture}.{key} is {value!r}, but must be a positive whole number")


def check_output(output: Path, force: bool) -> None:
    if output.exists() and not output.is_dir():
        raise ImportFailed(f"{output}: --out is a file, but must be a folder; give another path")
    if output.is_dir() and any(output.iterdir()) and not force:
        raise ImportFailed(f"{output}: --out is not empty; give another folder, or --force to replace it")


# --- What is written ----------------------------------------------------------------------------------------------


def run_reader(gguf: Path, folder: Path) -> None:
    """Writes openvino_model.xml and the tokenizers into `folder`; the reader puts them beside the file it is given."""
    link = folder / gguf.name
    link.symlink_to(gguf.resolve())
    try:
        done = subprocess.run(
            [sys.executable, "-c", _READER, str(link)],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=READER_TIME_LIMIT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ImportFailed(
            f"{gguf}: openvino-genai's reader took more than {READER_TIME_LIMIT_SECONDS} seconds"
        ) from error
    link.unlink()
    if done.returncode != 0:
        lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        reason = f"ended by signal {-done.returncode}" if done.returncode < 0 else (lines or ["no message"])[-1][:300]
        raise ImportFailed(f"{gguf}: openvino-genai's reader cannot import it: {reason}")
    for name in ("openvino_model.xml", "openvino_tokenizer.xml", "openvino_detokenizer.xml"):
        if not (folder / name).is_file():
            raise ImportFailed(
                f"{gguf}: openvino-genai's reader wrote no {name}; the file may lack a tokenizer that the reader knows"
            )


def model_config(header: gguf_header.GgufHeader) -> dict:
    """The model's figures under the names of Hugging Face's config.json."""
    metadata = header.metadata
    heads = header.get("attention.head_count")
    head_size = header.get("attention.key_length") or header.get("embedding_length") // heads
    tokens = metadata.get("tokenizer.ggml.tokens") or []
    config = {
        "model_type": metadata["general.architecture"],
        "num_hidden_layers": header.get("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": header.get("attention.head_count_kv", heads),
        "head_dim": head_size,
        "hidden_size": header.get("embedding_length"),
        "intermediate_size": header.get("feed_forward_length"),
        "vocab_size": header.get("vocab_size") or len(tokens) or None,
        "max_position_embeddings": header.get("context_length"),
        "rope_theta": header.get("rope.freq_base", 10000.0),
        "rms_norm_eps": header.get("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": metadata.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": metadata.get("tokenizer.ggml.padding_token_id"),
    }
    rotated = header.get("rope.dimension_count", head_size)
    if rotated != head_size:
        config["partial_rotary_factor"] = rotated / head_size
    if header.get("attention.sliding_window"):
        config["sliding_window"] = header.get("attention.sliding_window")
    return {key: value for key, value in config.items() if value is not None}


def special_tokens(header: gguf_header.GgufHeader) -> dict[str, str]:
    """The text of the special tokens, which chat templates name, as in Hugging Face's special_tokens_map.json."""
    tokens = header.metadata.get("tokenizer.ggml.tokens") or []
    keys = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
    found = {}
    for name, key in keys.items():
        number = header.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if isinstance(number, int) and 0 <= number < len(tokens):
            found[name] = tokens[number]
    return found


def write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


class FileValues:
    """Values of the weight matrices from the GGUF file, with a count of those that had to be left as the reader made them."""

    def __init__(self, gguf: Path, header: gguf_header.GgufHeader, keep: bool) -> None:
        import gguf_weights

        self._file = gguf_weights.GgufWeights(gguf, header, model_config(header)["head_dim"])
        self._keep = keep
        self.kept: dict[str, object] = {}
        self.found = 0
        self.missing = 0

    def __call__(self, name: str, imported):
        values = self._file.values(imported)
        self.found += values is not None
        self.missing += values is None
        values = imported if values is None else values
        if self._keep:
            self.kept[name] = values
        return values


def write_int8(folder: Path, values: Callable) -> None:
    """Replaces the model in `folder` by one with int8 weights."""
    import int8_weights
    import openvino as ov

    model = ov.Core().read_model(folder / "openvino_model.xml")
    summary = int8_weights.convert(model, values)
    if summary.matrices == 0:
        raise ImportFailed(
            "the imported model has no weight matrix that --weights int8 could round; use --weights original"
        )
    # The model that was read still maps its file, so the new one is written beside it and then takes its place.
    ov.save_model(model, folder / "int8.xml", compress_to_fp16=False)
    del model
    for suffix in (".xml", ".bin"):
        os.replace(folder / f"int8{suffix}", folder / f"openvino_model{suffix}")
    say(
        f"{summary.matrices} matrices, {summary.weights:,} weights rounded to int8; "
        f"root mean square error {100 * summary.relative_error:.2f} %"
    )


def check_result(folder: Path, original: Path, values: FileValues | None) -> dict:
    """Runs what was written on a paragraph. Compares it with the reader's import and, if there are any, the file's values."""
    import int8_weights
    import model_check
    import numpy as np
    import openvino as ov

    tokens = model_check.tokenize(folder)
    written = model_check.log_probabilities(folder / "openvino_model.xml", tokens)
    if not np.isfinite(written).all():
        raise ImportFailed(
            "the imported model computes values that are not numbers; the file is damaged or not supported"
        )
    report = {"tokens": len(tokens), "perplexity": round(model_check.perplexity(written, tokens), 3)}
    if values is None:
        say(f"check: perplexity {report['perplexity']:.2f} on a paragraph of {len(tokens)} tokens")
        return report

    readers = model_check.log_probabilities(original, tokens)
    report["perplexity_of_reader"] = round(model_check.perplexity(readers, tokens), 3)
    reference, of_what = readers, "the reader's import"
    if values.kept:
        model = ov.Core().read_model(original)
        int8_weights.replace_values(model, values.kept)
        reference, of_what = model_check.log_probabilities(model, tokens), "the file's values"
        gap = model_check.distance(reference, readers)
        report["reader_to_file"] = {"kl": round(gap.kl, 5), "top1": round(gap.top1, 4)}
        say(f"check: the reader's import against {of_what}: KL {gap.kl:.4f}, same first choice {100 * gap.top1:.1f} %")
    gap = model_check.distance(reference, written)
    report["int8_to_file" if values.kept else "int8_to_reader"] = {"kl": round(gap.kl, 5), "top1": round(gap.top1, 4)}
    say(
        f"check: int8 against {of_what}: KL {gap.kl:.4f}, same first choice {100 * gap.top1:.1f} %; perplexity "
        f"{report['perplexity']:.2f}, the reader's import {report['perplexity_of_reader']:.2f} ({len(tokens)} tokens)"
    )
    if values.kept and not gap.kl <= LARGEST_SOUND_KL:
        raise ImportFailed(
            f"int8 weights move the model's predictions by {gap.kl:.2f} nats, more than the {LARGEST_SOUND_KL} that rounding "
            "can explain; use --weights original and report the file"
        )
    return report


def build(gguf: Path, header: gguf_header.GgufHeader, checksum: str, weights: str, folder: Path) -> None:
    """Fills the empty `folder` with the imported model."""
    reader_folder = folder / "reader"
    reader_folder.mkdir()
    say(f"reading {gguf.name} with openvino-genai")
    run_reader(gguf, reader_folder)
    values = None
    model_folder = folder / "model"
    shutil.copytree(reader_folder, model_folder, copy_function=os.link)
    if weights == "int8":
        count = sum(tensor.shape[0] * tensor.shape[1] for tensor in header.tensors.values() if len(tensor.shape) == 2)
        values = FileValues(gguf, header, keep=count <= MOST_WEIGHTS_COMPARED)
        write_int8(model_folder, values)
        if values.missing:
            say(
                f"{values.missing} of {values.found + values.missing} matrices are rounded from the reader's values, "
                "because their format in the file is not one that this importer unpacks"
            )
    write_json(model_folder / "special_tokens_map.json", special_tokens(header))
    result = prepare_model.prepare(model_folder)
    say(prepare_model.describe_result(result))
    check = check_result(model_folder, reader_folder / "openvino_model.xml", values)
    config = model_config(header)
    config["carousel"] = {
        "source": gguf.name,
        "source_sha256": checksum,
        "weights": weights,
        "importer": IMPORTER_VERSION,
        "check": check,
    }
    write_json(model_folder / "config.json", config)


def put_in_place(folder: Path, output: Path, aside: Path) -> None:
    """Renames `folder` to `output`. What was there before goes to `aside`, or back if the renaming fails."""
    if output.exists():
        os.rename(output, aside)
    try:
        os.rename(folder, output)
    except OSError:
        if aside.exists():
            os.rename(aside, output)
        raise


def import_model(gguf: Path, output: Path, weights: str, expected_sha256: str | None, force: bool) -> None:
    if not gguf.is_file():
        raise ImportFailed(f"{gguf}: --gguf is not a file; give the path of a .gguf file")
    check_output(output, force)
    header = gguf_header.read(gguf)
    check_readable(header, gguf)
    checksum = check_checksum(gguf, expected_sha256)
    output.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder as the target, so that the move at the end is a rename, which is done or not done.
    work = Path(tempfile.mkdtemp(prefix=".importing-", dir=output.parent))
    try:
        build(gguf, header, checksum, weights, work)
        model_folder = work / "model"
        model_folder.chmod(0o755)
        put_in_place(model_folder, output, work / "replaced")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    size_bytes = sum(entry.stat().st_size for entry in output.iterdir())
    say(f"{output} is ready, {size_bytes / 1e6:.0f} MB, weights {weights}")


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="import_gguf.py", description="Imports a language model from a GGUF file into a folder for Carousel."
    )
    parser.add_argument("--gguf", type=Path, required=True, metavar="FILE", help="the model")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to write")
    parser.add_argument(
        "--weights",
        choices=("int8", "original"),
        default="int8",
        help="int8: one scale per output channel, from the file's values; original: as openvino-genai's reader makes them, "
        "which rounds the offsets of 4-bit groups (default: int8)",
    )
    parser.add_argument("--expect-sha256", metavar="HEX", help="refuse the file unless it has this checksum")
    parser.add_argument("--force", action="store_true", help="replace DIR if it is not empty")
    options = parser.parse_args(arguments)
    expected = options.expect_sha256
    if expected is not None and (len(expected) != 64 or not set(expected.lower()) <= set("0123456789abcdef")):
        parser.error(f"--expect-sha256 is {expected!r}, but must be 64 hexadecimal digits")
    return options


def main(arguments: list[str]) -> int:
    options = parse_arguments(arguments)
    # Ended from outside, the half-made folder is still removed.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        import_model(options.gguf, options.out, options.weights, options.expect_sha256, options.force)
    except (ImportFailed, gguf_header.GgufError, prepare_model.ModelError) as error:
        print(f"{PREFIX}: {error}", file=sys.stderr)
        return 1
    except ImportError as error:
        print(f"{PREFIX}: {error}; run ./run setup first, and use .venv/bin/python", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{PREFIX}: {error.filename or options.out}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{PREFIX}: interrupted; nothing was written", file=sys.stderr)
        return 130
    except MemoryError:
        print(f"{PREFIX}: {options.gguf}: not enough memory for this model's weights", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
