# SPDX-License-Identifier: Apache-2.0
"""The check of include directions, on small trees."""

import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import check_includes  # noqa: E402


class Includes(unittest.TestCase):
    def complaints(self, files):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            for name, lines in files.items():
                path = root / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("\n".join(f"#include {line}" for line in lines), encoding="utf-8")
            return check_includes.check(root)[1]

    def test_sound_tree(self):
        files = {
            "include/carousel/config.h": ["<span>", '"carousel/types.h"'],
            "include/carousel/types.h": ["<cstdint>"],
            "src/base/check.h": [],
            "src/testing/tiny.h": ['"carousel/types.h"'],
            "src/cache/pool.h": ['"base/check.h"', '"carousel/types.h"'],
            "tests/models/tiny.h": ['"testing/tiny.h"', '"cache/pool.h"'],
            "src/cache/pool_test.cc": ["<gtest/gtest.h>", '"testing/tiny.h"', '"models/tiny.h"', '"cache/pool.h"'],
            "include/carousel/eviction_config.h": [],
            "src/eviction/policy.h": ['"carousel/eviction_config.h"'],
            "src/rope/rotate.cc": ['"hwy/foreach_target.h"', "<hwy/highway.h>"],
            "src/engine/step.cc": ['"cache/pool.h"'],
            "src/openvino/load.cc": ["<openvino/openvino.hpp>", '"engine/step.h"'],
            "src/engine/step.h": [],
            "apps/cli/flags.h": [],
            "apps/cli/main.cc": ['"cli/flags.h"', '"engine/step.h"'],
            "tests/end_to_end_test.cc": ["<openvino/openvino.hpp>", '"engine/step.h"'],
        }
        self.assertEqual(self.complaints(files), [])

    def test_each_wrong_direction(self):
        base = {
            "src/base/a.h": [],
            "src/eviction/a.h": [],
            "src/attention/a.h": [],
            "src/engine/a.h": [],
            "src/testing/a.h": [],
            "tests/models/a.h": [],
            "include/carousel/engine.h": [],
            "include/carousel/eviction_config.h": [],
        }
        for file, line, words in (
            ("src/base/b.cc", '"engine/a.h"', "wrong way"),
            ("src/attention/b.cc", '"eviction/a.h"', "wrong way"),
            ("src/eviction/b.cc", '"attention/a.h"', "wrong way"),
            ("src/engine/b.cc", "<openvino/openvino.hpp>", "may know the runtime"),
            ("apps/cli/b.cc", "<openvino/openvino.hpp>", "may know the runtime"),
            ("include/carousel/b.h", '"base/a.h"', "public header"),
            ("include/carousel/b.h", "<fmt/core.h>", "public header"),
            ("src/engine/b.cc", '"testing/a.h"', "tests only"),
            ("apps/cli/b.cc", '"testing/a.h"', "tests only"),
            ("src/engine/b.cc", '"models/a.h"', "tests only"),
            ("src/engine/b.cc", '"../base/a.h"', "root of its folder"),
            ("src/engine/b.cc", '"a.h"', "root of its folder"),
            ("src/engine/b.cc", '"base/none.h"', "is in none of"),
            ("src/engine/b.cc", "<base/a.h>", 'write "base/a.h"'),
            ("src/cache/b.h", '"carousel/eviction_config.h"', "wrong way"),
            ("src/eviction/b.h", '"carousel/engine.h"', "wrong way"),
            ("src/text/b.cc", '"carousel/engine.h"', "wrong way"),
            ("src/attic/b.cc", '"base/a.h"', "not a room"),
        ):
            complaints = self.complaints(base | {file: [line]})
            self.assertEqual(len(complaints), 1, (file, line, complaints))
            self.assertIn(words, complaints[0])
            self.assertTrue(complaints[0].startswith(f"{file}:1: "), complaints[0])


if __name__ == "__main__":
    unittest.main()
