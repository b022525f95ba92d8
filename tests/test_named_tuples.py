"""Named tuples that are quickly made: they do what those of `typing` do."""

from __future__ import annotations

import copy
import pickle
import typing
from typing import Any

import pytest

from jessymem.named_tuples import NamedTuple


class Point(NamedTuple):
    """A point."""

    x: int
    y: int = 2
    name: str = ""

    @property
    def total(self) -> int:
        return self.x + self.y


class Same(typing.NamedTuple):
    """A point."""

    x: int
    y: int = 2
    name: str = ""


class Pair(NamedTuple):
    first: Any
    second: Any


WAYS = {
    "in order": lambda make: make(1, 3, "a"),
    "by name": lambda make: make(name="a", y=3, x=1),
    "both": lambda make: make(1, name="a"),
    "left out": lambda make: make(1),
    "made": lambda make: make._make(iter([1, 3, "a"])),
    "replaced": lambda make: make(1)._replace(name="a", y=5),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_values(way):
    ours, theirs = way(Point), way(Same)
    assert ours == theirs == tuple(ours)
    assert ours._asdict() == theirs._asdict()
    assert (ours.x, ours.y, ours.name) == tuple(ours)
    assert repr(ours) == repr(theirs).replace("Same", "Point")
    assert hash(ours) == hash(theirs)
    assert ours.total == ours.x + ours.y
    assert type(ours) is Point


@pytest.mark.parametrize(
    "way",
    [
        lambda make: make(),
        lambda make: make(1, 2, "a", 4),
        lambda make: make(1, x=1),
        lambda make: make(1, other=1),
        lambda make: make(x=1, other=1, y=2),
        lambda make: make(name="a"),
    ],
)
def test_what_is_not_given_once_is_refused(way):
    with pytest.raises(TypeError, match="Point takes x, y, name, each once"):
        way(Point)
    with pytest.raises(TypeError):
        way(Same)


def test_only_what_is_there_is_replaced():
    with pytest.raises(TypeError, match="Point has no z, other"):
        Point(1)._replace(x=2, z=3, other=4)


def test_it_cannot_be_changed_and_has_no_room_for_more():
    point = Point(1)
    for name in ("x", "other"):
        with pytest.raises(AttributeError):
            setattr(point, name, 5)
    assert not hasattr(point, "__dict__")


def test_copies_and_pickles():
    point = Point(1, name="a")
    for again in (copy.copy(point), copy.deepcopy(point), pickle.loads(pickle.dumps(point))):
        assert again == point
        assert type(again) is Point


def test_it_matches_by_place_and_is_ordered():
    match Point(1, 5):
        case Point(x, y):
            assert (x, y) == (1, 5)
    assert sorted([Pair(2, 1), Pair(1, 9)])[0] == Pair(1, 9)
    assert Point._fields == Point.__match_args__ == Same._fields
    assert Point._field_defaults == Same._field_defaults
