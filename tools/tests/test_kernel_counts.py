# SPDX-License-Identifier: Apache-2.0
"""The comparison of instruction counts."""

import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import kernel_counts  # noqa: E402


class Compare(unittest.TestCase):
    def test_within_the_tolerance(self):
        self.assertEqual(kernel_counts.compare({"a": 1000, "b": 50}, {"a": 1019, "b": 50}), [])

    def test_more_and_fewer_are_told(self):
        complaints = kernel_counts.compare({"a": 1000, "b": 1000}, {"a": 1030, "b": 900})
        self.assertEqual(complaints, ["a: 1,030 instructions, 3.0% more than the 1,000 stored",
                                      "b: 900 instructions, 10.0% fewer than the 1,000 stored"])

    def test_cases_that_came_or_went_are_told(self):
        complaints = kernel_counts.compare({"a": 1}, {"b": 2})
        self.assertEqual(complaints, ["a: stored, but there is no such case any more",
                                      "b: 2 instructions, and none stored"])


class Count(unittest.TestCase):
    def test_a_program_that_fails_is_told(self):
        with self.assertRaisesRegex(kernel_counts.Failure, "no_case"):
            kernel_counts.count("/bin/false", "no_case")


if __name__ == "__main__":
    unittest.main()
