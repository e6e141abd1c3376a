"""Panels of lines as an SVG: axes with round numbers, and everything inside the picture."""

import re
from xml.etree import ElementTree

import pytest

from trd_ray.report import line_panels


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0, 0.25, 0.5, 0.75, 1]),
        (0.0, 7.3, [0, 2, 4, 6, 8]),
        (-0.4, 0.9, [-0.5, 0, 0.5, 1]),
        (0, 0, [0, 0.25]),
    ],
)
def test_axes_have_round_numbers_that_hold_what_is_drawn(low, high, expected):
    assert line_panels.ticks(low, high) == pytest.approx(expected)


def test_rows_may_have_different_numbers_of_panels_and_a_line_without_points_is_left_out():
    line = [(x, x / 2, x / 4, float(x)) for x in (1, 2, 3)]
    rows = [
        [line_panels.LinePanel("a < b", "nats", {"one": line, "two": []})] * 2,
        [line_panels.LinePanel("c", "nats", {"two": line})],
    ]
    picture = line_panels.drawn(rows, "what is seen", "tenth", "note")
    root = ElementTree.fromstring(picture)
    width, height = (float(n) for n in root.get("viewBox", "").split()[2:])
    paths = [path for path in root.iter("{http://www.w3.org/2000/svg}path")]
    assert [path.get("class") for path in paths].count("band line0") == 2
    assert [path.get("class") for path in paths].count("band line1") == 1
    for path in paths:
        numbers = [float(n) for n in re.findall(r"-?\d+\.?\d*", path.get("d", ""))]
        assert all(-1 <= n <= max(width, height) for n in numbers)
