# SPDX-License-Identifier: Apache-2.0
import copy
import json
import unittest
import xml.etree.ElementTree as ElementTree

import picture


def stored(name):
    return json.loads((picture.FOLDER / name).read_text(encoding="utf-8"))


class Picture(unittest.TestCase):
    def setUp(self):
        self.stream, self.speed = stored("stream.json"), stored("speed.json")

    def test_is_what_the_stored_data_give(self):
        drawn = picture.draw(self.stream, self.speed)
        self.assertEqual((picture.FOLDER / "picture.svg").read_text(encoding="utf-8"), drawn)

    def test_is_sound_and_stays_on_its_page(self):
        page = ElementTree.fromstring(picture.draw(self.stream, self.speed))
        _, _, width, height = map(float, page.get("viewBox").split())
        for curve in page.iter("{http://www.w3.org/2000/svg}polyline"):
            for point in curve.get("points").split():
                x, y = map(float, point.split(","))
                self.assertTrue(0 <= x <= width and 0 <= y <= height, point)

    def test_shows_other_data_otherwise(self):
        other = copy.deepcopy(self.stream)
        other["runs"][0]["segments"][0]["perplexity"] *= 2
        self.assertNotEqual(picture.draw(other, self.speed), picture.draw(self.stream, self.speed))

    def test_says_where_data_come_from(self):
        for data in (self.stream, self.speed):
            self.assertTrue(data["commit"] and data["machine"])
        self.assertTrue(all(run["command"].startswith("./run carousel stream") for run in self.stream["runs"]))


class Scales(unittest.TestCase):
    def test_begin_and_end_at_the_edges(self):
        plain = picture.Panel(10, 110, 20, 220, 1000, 0, 50, False)
        self.assertEqual([plain.x(0), plain.x(1000), plain.y(0), plain.y(50), plain.y(25)], [10, 110, 220, 20, 120])

    def test_of_powers_are_even_steps(self):
        panel = picture.Panel(0, 1, 0, 300, 1, 1, 1000, True)
        self.assertEqual([panel.y(1), panel.y(10), panel.y(100), panel.y(1000)], [300, 200, 100, 0])
