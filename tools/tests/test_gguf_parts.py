# SPDX-License-Identifier: Apache-2.0
"""Models in several GGUF files: read as one, and refused where the files do not belong together."""

import hashlib
import json
import sys
import unittest
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

import gguf_header  # noqa: E402
import gguf_parts  # noqa: E402
import import_case  # noqa: E402
import import_gguf  # noqa: E402
import numpy as np  # noqa: E402
import tiny_gguf  # noqa: E402


class Parts(import_case.ImportCase):
    def setUp(self):
        super().setUp()
        self.entries = tiny_gguf.metadata("llama")
        self.tensors = tiny_gguf.weights(self.entries, "Q8_0")
        self.paths = [self.folder / f"tiny-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
        for path, data in zip(self.paths, tiny_gguf.parts(self.entries, self.tensors, 3)):
            path.write_bytes(data)

    def rewrite(self, index, **changes):
        """Part `index` with other metadata."""
        names = list(self.tensors)[index::3]
        own = {"split.no": index, "split.count": 3, "split.tensors.count": len(self.tensors)}
        entries = (self.entries if index == 0 else {}) | own
        entries |= {key.replace("__", "."): value for key, value in changes.items()}
        held = {name: self.tensors[name] for name in names}
        self.paths[index].write_bytes(
            tiny_gguf.file_bytes({key: value for key, value in entries.items() if value is not None}, held)
        )

    def test_the_same_model_as_in_one_file(self):
        self.gguf.write_bytes(tiny_gguf.file_bytes(self.entries, self.tensors))
        whole = import_gguf.Source(self.gguf, gguf_parts.read(self.gguf)[1], None)
        for given in self.paths:
            paths, header = gguf_parts.read(given)
            self.assertEqual(paths, self.paths)
            joined = import_gguf.Source(paths[0], header, None)
            self.assertEqual(joined.description.decoder, whole.description.decoder)
            for name, tensor in whole.header.tensors.items():
                self.assertEqual(header.tensors[name].shape, tensor.shape)
                of_both = [
                    np.concatenate(list(weights.rows(name))) if len(tensor.shape) == 2 else weights.vector(name)
                    for weights in (whole.weights("f16"), joined.weights("f16"))
                ]
                np.testing.assert_array_equal(*of_both, err_msg=name)

    def test_import(self):
        checksums = [hashlib.sha256(path.read_bytes()).hexdigest() for path in self.paths]
        wanted = [word for checksum in checksums for word in ("--expect-sha256", checksum)]
        status, out, err = self.start(*wanted, gguf=self.paths[1])
        self.assertEqual((status, err), (0, ""))
        self.assertIn("3 parts, tiny-00001-of-00003.gguf to tiny-00003-of-00003.gguf", out)
        notes = json.loads((self.output / "config.json").read_text())["carousel"]
        self.assertEqual((notes["source"], notes["source_sha256"]), ("tiny-00001-of-00003.gguf", checksums))

    def test_checksums(self):
        of_first = hashlib.sha256(self.paths[0].read_bytes()).hexdigest()
        self.refuse("has 3 parts, but --expect-sha256 gives checksums of 1", "--expect-sha256", of_first, gguf=self.paths[0])
        wrong = ["--expect-sha256", of_first, "--expect-sha256", "0" * 64, "--expect-sha256", "0" * 64]
        self.refuse("tiny-00002-of-00003.gguf: sha256 is .* expected 0000", *wrong, gguf=self.paths[0])
        self.gguf.write_bytes(tiny_gguf.tiny_llama())
        self.refuse("has 1 file, but --expect-sha256 gives checksums of 2", *wrong[:4])

    def test_parts_that_are_missing(self):
        self.paths[1].unlink()
        for given in (self.paths[0], self.paths[2]):
            self.refuse(r"part 2 is missing: it should be .*/tiny-00002-of-00003.gguf", gguf=given)
        self.paths[0].unlink()
        self.refuse(r"this is part 3 of 3, and part 1 is missing, and so are 1 more", gguf=self.paths[2])

    def test_a_part_with_another_name(self):
        self.paths[0].rename(self.gguf)
        self.refuse("part 1 of 3 by its metadata, and its name does not end with -00001-of-00003.gguf")

    def test_parts_that_do_not_belong_together(self):
        first = self.paths[0]
        self.paths[2].write_bytes(self.paths[1].read_bytes())
        self.refuse("by its name this is part 3 of 3, by its metadata part 2 of 3", gguf=first)
        for changes, words in (
            ({"split__count": 4}, "00003-of-00003.gguf: by its name .* by its metadata part 3 of 4"),
            ({"split__count": None}, "00003-of-00003.gguf: by its name .* by its metadata part 1 of 1"),
            ({"split__no": 7}, r"split.no is 7, but must be in \[0, 3\)"),
            ({"split__no": None}, "split.no is None"),
            ({"split__no": True}, "split.no is True"),
            ({"split__tensors__count": 99}, "split.tensors.count is 99, but in part 1 20"),
            ({"general__architecture": "gemma3"}, "general.architecture is 'gemma3', but in part 1 'llama'"),
        ):
            with self.subTest(words):
                self.rewrite(2, **changes)
                self.refuse(words, gguf=first)

    def test_tensors_that_are_twice_or_nowhere(self):
        first = self.paths[0]
        names = list(self.tensors)
        self.tensors = self.tensors | {names[2]: self.tensors[names[2]]}
        data = tiny_gguf.parts(self.entries, self.tensors, 3)
        own = {"split.no": 1, "split.count": 3, "split.tensors.count": len(names)}
        held = {name: self.tensors[name] for name in names[0::3]}
        self.paths[1].write_bytes(tiny_gguf.file_bytes(own, held))
        self.refuse(f"00002-of-00003.gguf: the tensor {names[0]} is in .*00001-of-00003.gguf as well", gguf=first)
        held = {name: self.tensors[name] for name in names[1::3][1:]}
        self.paths[1].write_bytes(tiny_gguf.file_bytes(own, held))
        self.refuse("the 3 parts hold 19 tensors, but split.tensors.count is 20", gguf=first)
        self.paths[1].write_bytes(data[1][: len(data[1]) // 2])
        self.refuse("tiny-00002-of-00003.gguf: truncated", gguf=first)

    def test_counts_that_cannot_be(self):
        for count in (-1, 2**40, "two", [2], True, 2.0):
            self.gguf.write_bytes(tiny_gguf.tiny("llama", split__count=count))
            self.assertRaisesRegex(gguf_header.GgufError, "split.count is .*, but must be", gguf_parts.read, self.gguf)
        for count in (0, 1):
            self.gguf.write_bytes(tiny_gguf.tiny("llama", split__count=count))
            self.assertEqual(gguf_parts.read(self.gguf)[0], [self.gguf])


if __name__ == "__main__":
    unittest.main()
