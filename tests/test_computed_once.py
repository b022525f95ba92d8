"""Attributes that are made when first asked for, by one thread or by several at once."""

from __future__ import annotations

import threading

from jessymem.computed_once import computed_once


class Made:
    def __init__(self):
        self.n_made = 0
        self.wait = lambda: None

    @computed_once
    def answer(self):
        """Say what it is."""
        self.n_made += 1
        self.wait()
        return [self.n_made]


def test_it_is_made_when_first_asked_for_and_kept():
    made = Made()
    assert made.n_made == 0
    assert made.answer == [1]
    assert made.answer is made.answer
    assert made.n_made == 1


def test_each_instance_has_its_own():
    assert Made().answer is not Made().answer


def test_the_class_shows_what_it_is():
    assert isinstance(Made.answer, computed_once)
    assert Made.answer.__doc__ == "Say what it is."


def test_what_fails_is_tried_again():
    made = Made()
    made.wait = lambda: 1 // 0
    for _ in range(2):
        try:
            made.answer  # noqa: B018
        except ZeroDivisionError:
            continue
    made.wait = lambda: None
    assert made.answer == [3]


def test_threads_that_ask_at_once_get_the_same():
    made = Made()
    made.wait = threading.Barrier(4).wait  # all are within before one is done
    seen = []
    threads = [threading.Thread(target=lambda: seen.append(made.answer)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 4
    assert all(each is seen[0] for each in seen)
    assert made.answer is seen[0]
