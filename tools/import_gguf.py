#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Imports a language model from a GGUF file: writes a folder with an OpenVINO model, its tokenizer and their description.

The file, or each of its parts (gguf_parts.py), is checked (gguf_header.py), described (gguf_architectures.py), its weights
are unpacked and coded anew (gguf_weights.py, matrix_codes.py), and a graph is built around them (decoder_graph.py) and a
tokenizer from the vocabulary (gguf_vocabulary.py, gguf_tokenizer.py). The folder appears only when it is complete and has
been run.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import gguf_header
import gguf_parts
import prepare_model

# `./run setup` imports the default model again when this changes: raise it when what is written changes.
IMPORTER_VERSION = 2

PREFIX = "import_gguf"
# Above this many weights the comparison with unrounded ones would need gigabytes.
MOST_WEIGHTS_COMPARED = 200_000_000
# Rounding to int8 moves the distribution by some thousandths of a nat, to int4 by some tenths; this much means that
# something went wrong.
LARGEST_SOUND_KL = {"int8": 0.5, "int4": 2.0}
# Names under which models end a turn, where the file names only what ends a text.
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|end_of_text|>")


class ImportFailed(Exception):
    """The import cannot be done; the message is one line for the user."""


def say(text: str) -> None:
    print(f"{PREFIX}: {text}", flush=True)


# --- Before anything is written -----------------------------------------------------------------------------------


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_checksums(paths: list[Path], expected: list[str]) -> list[str]:
    """Those of the files in order. `expected` has none, or one for each file."""
    if expected and len(expected) != len(paths):
        raise ImportFailed(
            f"{paths[0]}: the model has {len(paths)} {'file' if len(paths) == 1 else 'parts'}, but --expect-sha256 gives "
            f"checksums of {len(expected)}; give one for each, in their order, or none"
        )
    found = [sha256(path) for path in paths]
    for path, checksum, wanted in zip(paths, found, expected):
        if checksum != wanted.lower():
            raise ImportFailed(
                f"{path}: sha256 is {checksum}, expected {wanted.lower()}; the file is damaged or another version: "
                "fetch it again, or leave out --expect-sha256 to import it as it is"
            )
    return found


def check_output(output: Path, force: bool) -> None:
    if output.exists() and not output.is_dir():
        raise ImportFailed(f"{output}: --out is a file, but must be a folder; give another path")
    if output.is_dir() and any(output.iterdir()) and not force:
        raise ImportFailed(f"{output}: --out is not empty; give another folder, or --force to replace it")


# --- What is written ----------------------------------------------------------------------------------------------


def end_tokens(vocabulary) -> list[int]:
    """What ends an answer: what the file says ends a text, and the tokens that models end a turn with."""
    turn_ends = [index for index in vocabulary.special if vocabulary.tokens[index] in _TURN_ENDS]
    return list(dict.fromkeys([*vocabulary.ends, *turn_ends]))


def model_config(header: gguf_header.GgufHeader, description, vocabulary) -> dict:
    """The model's figures under the names of Hugging Face's config.json."""
    decoder = description.decoder
    windows = sorted({layer.window for layer in decoder.layers} - {0})
    ends = end_tokens(vocabulary)
    config = {
        "model_type": header.metadata["general.architecture"],
        "num_hidden_layers": len(decoder.layers),
        "num_attention_heads": decoder.query_heads,
        "num_key_value_heads": decoder.kv_heads,
        "head_dim": decoder.key_dim,
        "hidden_size": decoder.hidden_size,
        "intermediate_size": decoder.feed_forward_size,
        "vocab_size": decoder.vocabulary_size,
        "max_position_embeddings": description.trained_window,
        "rope_theta": description.theta,
        "rms_norm_eps": decoder.norm_epsilon,
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "bos_token_id": vocabulary.named.get("bos"),
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": vocabulary.named.get("padding"),
    }
    if windows:
        config["sliding_window"] = windows[0]
        config["layer_types"] = ["sliding_attention" if layer.window else "full_attention" for layer in decoder.layers]
        config["rope_local_base_freq"] = description.window_theta or None
    return {key: value for key, value in config.items() if value is not None}


def declared_rope(decoder) -> dict:
    """How the file says each layer rotates, for `carousel`, which measures it and compares."""
    tables = list(dict.fromkeys(layer.rope for layer in decoder.layers if layer.rope is not None))
    return {
        "tables": [
            {"frequencies": list(table.frequencies), "attention_factor": table.attention_factor} for table in tables
        ],
        "layers": [None if layer.rope is None else tables.index(layer.rope) for layer in decoder.layers],
    }


def special_tokens(vocabulary) -> dict[str, str]:
    """The text of the special tokens, which chat templates name, as in Hugging Face's special_tokens_map.json."""
    keys = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
    return {name: vocabulary.tokens[vocabulary.named[key]] for name, key in keys.items() if key in vocabulary.named}


def readable(name: str) -> str:
    """A file's name as text: what is no UTF-8 or cannot be printed is "?"."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)


def write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save(model, folder: Path, name: str) -> None:
    import openvino as ov

    # Weights are coded already, and what is float32 has to stay so: RoPE's frequencies above all.
    ov.save_model(model, folder / f"{name}.xml", compress_to_fp16=False)


class Source:
    """One model, checked, and what its files say. `path`: the file, or the first of its parts."""

    def __init__(self, path: Path, header: gguf_header.GgufHeader, window: int | None) -> None:
        import gguf_architectures
        import gguf_vocabulary
        import gguf_weights

        self.path, self.header = path, header
        self._reader = gguf_weights.GgufWeights
        self.description = gguf_architectures.describe(header, self._reader(path, header, "f16", {}), str(path), window)
        self.vocabulary = gguf_vocabulary.read(header.metadata, self.description.decoder.vocabulary_size, str(path))

    def weights(self, kind: str):
        return self._reader(self.path, self.header, kind, self.description.row_orders)

    def count(self) -> int:
        return sum(
            tensor.shape[0] * tensor.shape[1] for tensor in self.header.tensors.values() if len(tensor.shape) == 2
        )


def write_model(source: Source, kind: str, folder: Path) -> None:
    import decoder_graph

    weights = source.weights(kind)
    save(decoder_graph.build(source.description.decoder, weights, readable(source.path.stem)), folder, "openvino_model")
    say(
        f"{weights.error.matrices} matrices, {weights.error.weights:,} weights as {kind}; root mean square error "
        f"{100 * weights.error.relative:.2f} %"
    )


def write_tokenizer(source: Source, folder: Path) -> None:
    import gguf_tokenizer

    vocabulary = source.vocabulary
    notes: dict[str, object] = {
        f"{name}_token_id": vocabulary.named.get(key)
        for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    }
    notes["chat_template"] = vocabulary.chat_template
    tokenizer, detokenizer = gguf_tokenizer.build(vocabulary, notes)
    save(tokenizer, folder, "openvino_tokenizer")
    save(detokenizer, folder, "openvino_detokenizer")


def check_result(source: Source, kind: str, folder: Path) -> dict:
    """Runs what was written on a paragraph, and compares it with unrounded weights."""
    import decoder_graph
    import model_check
    import numpy as np

    tokens = model_check.tokenize(folder)
    written = model_check.log_probabilities(folder / "openvino_model.xml", tokens)
    if not np.isfinite(written).all():
        raise ImportFailed(
            f"{source.path}: the imported model computes values that are not numbers; the file is damaged or not supported"
        )
    report = {"tokens": len(tokens), "perplexity": round(model_check.perplexity(written, tokens), 3)}
    said = f"check: perplexity {report['perplexity']:.2f} on a paragraph of {len(tokens)} tokens"
    if kind != "f16" and source.count() <= MOST_WEIGHTS_COMPARED:
        exact = decoder_graph.build(source.description.decoder, source.weights("f16"), "f16")
        gap = model_check.distance(model_check.log_probabilities(exact, tokens), written)
        report |= {"kl_to_f16": round(gap.kl, 5), "top1_of_f16": round(gap.top1, 4)}
        said += f"; {kind} against f16: KL {gap.kl:.4f}, same first choice {100 * gap.top1:.1f} %"
        if not gap.kl <= LARGEST_SOUND_KL[kind]:
            raise ImportFailed(
                f"{source.path}: {kind} weights move the model's predictions by {gap.kl:.2f} nats, more than the "
                f"{LARGEST_SOUND_KL[kind]} that rounding can explain; use --weights f16 and report the file"
            )
    say(said)
    return report


def notes_on_import(source: Source, checksums: list[str], kind: str, check: dict) -> dict:
    """What config.json says of the import itself."""
    vocabulary = source.vocabulary
    notes = {
        "source": readable(source.path.name),
        "source_sha256": checksums[0] if len(checksums) == 1 else checksums,
        "weights": kind,
        "importer": IMPORTER_VERSION,
        "check": check,
        "rope": declared_rope(source.description.decoder),
    }
    if vocabulary.swallows_space_after:
        notes["swallows_space_after"] = [vocabulary.tokens[index] for index in sorted(vocabulary.swallows_space_after)]
    return notes


def build(source: Source, checksums: list[str], kind: str, folder: Path) -> None:
    """Fills the empty `folder` with the imported model."""
    write_model(source, kind, folder)
    write_tokenizer(source, folder)
    write_json(folder / "special_tokens_map.json", special_tokens(source.vocabulary))
    say(prepare_model.describe_result(prepare_model.prepare(folder)))
    check = check_result(source, kind, folder)
    config = model_config(source.header, source.description, source.vocabulary)
    config["carousel"] = notes_on_import(source, checksums, kind, check)
    write_json(folder / "config.json", config)


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


def import_model(options: argparse.Namespace) -> None:
    gguf, output = options.gguf, options.out
    if not gguf.is_file():
        raise ImportFailed(f"{gguf}: --gguf is not a file; give the path of a .gguf file")
    check_output(output, options.force)
    paths, header = gguf_parts.read(gguf)
    if len(paths) > 1:
        say(f"the model is in {len(paths)} parts, {readable(paths[0].name)} to {readable(paths[-1].name)}")
    source = Source(paths[0], header, options.window)
    checksums = check_checksums(paths, options.expect_sha256)
    output.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder as the target, so that the move at the end is a rename, which is done or not done.
    work = Path(tempfile.mkdtemp(prefix=".importing-", dir=output.parent))
    try:
        model_folder = work / "model"
        model_folder.mkdir()
        build(source, checksums, options.weights, model_folder)
        put_in_place(model_folder, output, work / "replaced")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    size_bytes = sum(entry.stat().st_size for entry in output.iterdir())
    say(f"{output} is ready, {size_bytes / 1e6:.0f} MB, weights {options.weights}")


def positive(text: str) -> int:
    value = int(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"must be positive, and is {value}")
    return value


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="import_gguf.py", description="Imports a language model from a GGUF file into a folder for Carousel."
    )
    parser.add_argument(
        "--gguf",
        type=Path,
        required=True,
        metavar="FILE",
        help="the model; of one in several parts (NAME-00001-of-00002.gguf and so on) any part, with the others beside it",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to write")
    parser.add_argument(
        "--weights",
        choices=("int8", "int4", "f16"),
        default="int8",
        help="int8: one scale per output channel; int4: groups of 32, half the memory; f16: not rounded further (default: int8)",
    )
    parser.add_argument(
        "--window",
        type=positive,
        metavar="TOKENS",
        help="how many positions the model is to be used on; models with two sets of RoPE factors get those for texts of this "
        "length (default: all that it was trained on)",
    )
    parser.add_argument(
        "--expect-sha256",
        action="append",
        default=[],
        metavar="HEX",
        help="refuse the file unless it has this checksum; for a model in several parts once for each, in their order",
    )
    parser.add_argument("--force", action="store_true", help="replace DIR if it is not empty")
    options = parser.parse_args(arguments)
    for expected in options.expect_sha256:
        if len(expected) != 64 or not set(expected.lower()) <= set("0123456789abcdef"):
            parser.error(f"--expect-sha256 is {expected!r}, but must be 64 hexadecimal digits")
    return options


def main(arguments: list[str]) -> int:
    # A file's name need not be text, and messages name it.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    options = parse_arguments(arguments)
    # Ended from outside, the half-made folder is still removed.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        import_model(options)
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
