"""Rows laid over each other, and tables that grow, beside a dictionary that does the same."""

from __future__ import annotations

import random

import numpy as np
import pytest

from jessymem.kernels import schema as s
from jessymem.regions.rows import GrowingRows, lay_over, newest


def columns(numbers, mark):
    """Return rows of some numbers that are marked, and a further column with the same mark."""
    rows = np.zeros(len(numbers), s.LAYER)
    rows["layer_num"] = sorted(numbers)
    rows["content_offset"] = mark
    return rows, np.full(len(numbers), mark, np.uint8)


def shown(table):
    rows, marks = table
    assert rows["content_offset"].tolist() == marks.tolist()
    return dict(zip(rows["layer_num"].tolist(), marks.tolist(), strict=True))


@pytest.mark.parametrize("seed", range(40))
def test_the_last_row_of_a_number_counts(seed):
    chance = random.Random(seed)
    n_numbers = chance.choice([3, 20, 300])
    tables, expected = [], {}
    for mark in range(chance.randint(2, 5)):
        numbers = chance.sample(range(n_numbers), chance.randint(0, n_numbers))
        tables.append(columns(numbers, mark))
        expected |= dict.fromkeys(numbers, mark)
    before = [rows.copy() for rows, _ in tables]
    laid = lay_over(tables[0], newest(tables[1:]))
    assert shown(laid) == expected
    assert laid[0]["layer_num"].tolist() == sorted(expected)
    assert not len(laid[0]) or laid[0].ctypes.data % s.CACHE_LINE_BYTES == 0
    assert all(np.array_equal(rows, old) for (rows, _), old in zip(tables, before, strict=True))
    assert not any(np.shares_memory(laid[0], rows) for rows, _ in tables)


def rows_of(*numbers):
    return columns(numbers, 1)[0]


def numbers_in(table, n_rows):
    return table.rows(n_rows)["layer_num"].tolist()


def test_a_table_grows_behind_what_earlier_states_see():
    table = GrowingRows(rows_of(0, 1), 3)
    assert table.index(2) is None
    assert table.has_space(2, rows_of(2, 5)) and table.extend(rows_of(2, 5)) == slice(2, 4)
    assert numbers_in(table, 2) == [0, 1] and numbers_in(table, 4) == [0, 1, 2, 5]
    assert table.index(2) is None
    nowhere = s.NO_LAYER
    assert table.index(4).tolist() == [0, 1, 2, nowhere, nowhere, 3]
    table.extend(rows_of(7))
    assert table.index(4).tolist() == [0, 1, 2, nowhere, nowhere, 3]
    assert table.index(5).tolist() == [0, 1, 2, nowhere, nowhere, 3, nowhere, 4]


def test_where_a_table_does_not_grow():
    table = GrowingRows(rows_of(0, 3), 2, n_numbers=9)
    assert not table.has_space(2, rows_of(2)) and not table.has_space(2, rows_of(3))
    assert not table.has_space(2, rows_of(4, 5, 6))
    assert not table.has_space(2, rows_of(4, 9)) and table.has_space(2, rows_of(4, 8))
    table.extend(rows_of(4))
    assert not table.has_space(2, rows_of(5))  # another state went on from there
    assert table.has_space(3, rows_of(5))


def test_many_rows_at_once():
    numbers = range(0, 3_000, 3)
    table = GrowingRows(rows_of(*numbers), 1_000)
    table.index(1_000)
    more = range(3_000, 5_000, 2)
    table.extend(rows_of(*more))
    index = table.index(2_000)
    everything = [*numbers, *more]
    assert [int(index[number]) for number in everything] == list(range(2_000))
    assert np.count_nonzero(index != s.NO_LAYER) == 2_000
