# SPDX-License-Identifier: Apache-2.0
import tempfile
import unittest
from pathlib import Path

from quality import report
from quality.comparison import Section
from quality.settings import capped, recent_size
from quality.store import Store
from quality.text import Tokens, default_text


class Results(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def test_what_is_put_is_there_again(self):
        path = self.folder / "sub" / "results.jsonl"
        store = Store(path)
        self.assertIsNone(store.get({"a": 1}))
        store.put({"a": 1, "b": 2}, {"x": [1.5]})
        self.assertEqual(store.get({"b": 2, "a": 1}), {"x": [1.5]})
        self.assertEqual(Store(path).get({"a": 1, "b": 2}), {"x": [1.5]})

    def test_a_line_cut_short_is_dropped_and_costs_nothing_else(self):
        path = self.folder / "results.jsonl"
        Store(path).put({"a": 1}, {"x": 1})
        with open(path, "a") as file:
            file.write('{"key": "half')
        store = Store(path)
        store.put({"a": 2}, {"x": 2})
        again = Store(path)
        self.assertEqual((again.get({"a": 1}), again.get({"a": 2})), ({"x": 1}, {"x": 2}))

    def test_the_report_has_every_figure_without_matplotlib(self):
        section = Section("name", "A <title>", ["words"], [{"title": "t", "columns": ["a"], "rows": [["<b>"]]}])
        report.write([section], "header", ["it broke"], self.folder)
        page = (self.folder / "report.html").read_text()
        for part in ("A &lt;title&gt;", "words", "&lt;b&gt;", "it broke", "header"):
            self.assertIn(part, page)
        self.assertIn("| <b> |", (self.folder / "report.md").read_text())


class Settings(unittest.TestCase):
    def test_areas_leave_something_to_evict(self):
        for budget in range(128, 4096, 32):
            self.assertEqual(recent_size(budget) % 32, 0)
            self.assertGreater(budget, 32 + recent_size(budget))
        self.assertEqual(capped(512, "--x")[-1], "--x")

    def test_without_packages_the_text_is_the_interpreters(self):
        name, text = default_text(patterns=("/no/such/*.txt",))
        self.assertIn("interpreter", name)
        self.assertGreater(len(text), 300_000)

    def test_a_file_under_two_names_is_one_text(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder).resolve() / "a.pod"
            path.write_text("once only " * 60_001)
            (path.parent / "b.pod").symlink_to(path)
            self.assertEqual(default_text(patterns=(f"{path.parent}/*.pod",))[1], path.read_text())

    def test_a_long_text_is_cut_before_a_space(self):
        tokens = Tokens.__new__(Tokens)
        text = "word " * 3000
        cut = tokens._cut(text)
        self.assertLessEqual(cut, Tokens.PIECE)
        self.assertEqual(text[cut], " ")
        self.assertNotEqual(text[cut - 1], " ")
