"""Labels beside points: none on another, none on a point, none outside, the same every time."""

from __future__ import annotations

import math
import random

import pytest

from peft_aot.compare.report.labels import LEADER_FROM, Box, Place, Point, arrange

FRAME = (0.0, 0.0, 560.0, 340.0)
SIZE = (90.0, 11.0)


def overlaps(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def around(point: Point) -> Box:
    return (point[0] - 5, point[1] - 5, point[0] + 5, point[1] + 5)


def assert_good(points: list[Point], places: list[Place]) -> None:
    for number, place in enumerate(places):
        box = place.box
        assert FRAME[0] <= box[0] <= box[2] <= FRAME[2], f"label {number} leaves the frame"
        assert FRAME[1] <= box[1] <= box[3] <= FRAME[3], f"label {number} leaves the frame"
        for other in places[:number]:
            assert not overlaps(box, other.box), f"label {number} is on another"
        for point in points:
            assert not overlaps(box, around(point)), f"label {number} is on a point"


@pytest.mark.parametrize("seed", range(8))
def test_16_labels_of_a_cloud(seed: int) -> None:
    chance = random.Random(seed)
    points = [(chance.gauss(200, 60), chance.gauss(200, 40)) for _ in range(16)]
    assert_good(points, arrange(points, [SIZE] * 16, FRAME, [around(point) for point in points]))


def test_16_labels_of_one_point() -> None:
    points = [(280.0, 170.0)] * 16
    places = arrange(points, [SIZE] * 16, FRAME, [around(point) for point in points])
    assert_good(points, places)
    assert sum(place.distance >= LEADER_FROM for place in places) >= 12  # those have lines to the point


def test_labels_stay_in_the_frame_at_its_corners() -> None:
    points = [(4.0, 4.0), (556.0, 336.0), (4.0, 336.0), (556.0, 4.0)]
    assert_good(points, arrange(points, [SIZE] * 4, FRAME, [around(point) for point in points]))


def test_a_lonely_label_is_right_beside_its_point() -> None:
    (place,) = arrange([(100.0, 100.0)], [SIZE], FRAME, [around((100.0, 100.0))])
    assert place.distance < LEADER_FROM
    assert place.box[0] > 100
    assert place.box[1] < 100 < place.box[3]


def test_an_error_bar_is_not_covered() -> None:
    bar = (20.0, 100.0, 400.0, 100.0)
    (place,) = arrange([(100.0, 100.0)], [SIZE], FRAME, [around((100.0, 100.0)), bar])
    assert not place.box[1] <= 100 <= place.box[3]


def test_a_line_does_not_prolong_an_error_bar() -> None:
    point, bar = (100.0, 100.0), (93.0, 100.0, 107.0, 100.0)
    above = (0.0, 108.0, 560.0, 116.0)  # what drives the label away from its point
    below = (0.0, 84.0, 560.0, 92.0)
    (place,) = arrange([point], [SIZE], FRAME, [around(point), bar, above, below])
    assert place.distance < LEADER_FROM or not place.box[1] < 100 < place.box[3]


def test_lines_end_at_their_labels() -> None:
    points = [(280.0, 170.0)] * 9
    for place in arrange(points, [SIZE] * 9, FRAME, [around(point) for point in points]):
        x, y = place.line[1]
        nearest = min(max(x, place.box[0]), place.box[2]), min(max(y, place.box[1]), place.box[3])
        assert math.dist((x, y), nearest) < 1e-6
        assert place.line[0] == (280.0, 170.0)


def test_the_same_points_get_the_same_places() -> None:
    points = [(200.0 + 3 * n, 170.0 + 2 * n) for n in range(12)]
    avoid = [around(point) for point in points]
    assert arrange(points, [SIZE] * 12, FRAME, avoid) == arrange(points, [SIZE] * 12, FRAME, avoid)


def test_no_points() -> None:
    assert arrange([], [], FRAME, []) == []
