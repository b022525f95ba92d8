"""The bit kernels: literal tables of words, every small case, and hypothesis against a set.

Each runs as plain Python and compiled. A bitmap lies between words that no kernel may touch.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.kernels import TIERS, running
from support.pools import signed, word_with

from jessymem.kernels import atomics, bitmap
from jessymem.kernels import schema as s

GUARD = 0x5A5A_5A5A_5A5A_5A5A
ALL = 2**64 - 1
TOP = 2**63
FIRST = 1  # word of a bitmap in its array: before it lies a guard


@pytest.fixture(params=TIERS)
def tier(request):
    with running(request.param) as tier:
        yield tier


class Bitmap:
    """A bitmap, given as patterns, and its summary: exact unless it is given too."""

    def __init__(self, tier, words, summary=None):
        self.n_words = len(words)
        self.n_hints = -(-len(words) // 64)
        self.summary_at = FIRST + self.n_words + 1
        if summary is None:
            summary = exact_summary(words)
        self.array = signed([GUARD, *words, GUARD, *summary, GUARD])
        self.argument = tier.argument(self.array)

    @property
    def words(self):
        return patterns(self.array[FIRST : FIRST + self.n_words])

    @property
    def summary(self):
        return patterns(self.array[self.summary_at : self.summary_at + self.n_hints])

    @property
    def free(self):
        """The free blocks, read bit by bit."""
        return {64 * i + bit for i, word in enumerate(self.words) for bit in bits_of(word)}

    def check(self):
        """Nothing around the bitmap was touched, and no word with free blocks lacks its hint."""
        guards = patterns(self.array[[0, self.summary_at - 1, -1]])
        assert guards == [GUARD] * 3
        for i, word in enumerate(self.words):
            assert not word or self.summary[i // 64] >> i % 64 & 1

    def claim_one(self, start=0):
        return bitmap.claim_one(self.argument, FIRST, self.n_words, self.summary_at, start)

    def claim_elsewhere(self, start=0):
        return bitmap.claim_elsewhere(self.argument, FIRST, self.n_words, self.summary_at, start)

    def claim_in_word(self, word_id):
        return bitmap.claim_in_word(self.argument, FIRST, word_id)

    def claim_where_hinted(self, start=0):
        return bitmap.claim_where_hinted(self.argument, FIRST, self.n_words, self.summary_at, start)

    def claim_block(self, block):
        return bitmap.claim_run(self.argument, FIRST, self.summary_at, block, 1) == s.OK

    def release_block(self, block):
        bitmap.release_block(self.argument, FIRST, self.summary_at, block)

    def find_run(self, n_blocks, start=0):
        return bitmap.find_run(self.argument, FIRST, self.n_words, n_blocks, start)

    def claim_run(self, block, n_blocks):
        return bitmap.claim_run(self.argument, FIRST, self.summary_at, block, n_blocks)

    def release_run(self, block, n_blocks):
        bitmap.release_run(self.argument, FIRST, self.summary_at, block, n_blocks)

    def count_free(self):
        return bitmap.count_free(self.argument, FIRST, self.n_words)


def patterns(array):
    return array.view(np.uint64).tolist()


def bits_of(word):
    return [bit for bit in range(64) if word >> bit & 1]


def exact_summary(words):
    hints = sum(1 << i for i, word in enumerate(words) if word)
    return [hints >> 64 * i & ALL for i in range(-(-len(words) // 64))]


def words_with(n_words, blocks):
    """Return words in which exactly these blocks are free."""
    return [word_with(*(b % 64 for b in blocks if b // 64 == i)) for i in range(n_words)]


def first_run(free, n_blocks, start, n_all):
    """Find a run the slow way."""
    for block in range(start, n_all - n_blocks + 1):
        if all(block + i in free for i in range(n_blocks)):
            return block
    return bitmap.NONE


# -- bits of one word ------------------------------------------------------------------------------


@pytest.mark.usefixtures("tier")
@pytest.mark.parametrize(
    ("i", "word"), [(0, 1), (1, 2), (31, 2**31), (32, 2**32), (62, 2**62), (63, -(2**63))]
)
def test_bit(i, word):
    assert bitmap.bit(i) == word


@pytest.mark.usefixtures("tier")
@pytest.mark.parametrize(
    ("first", "n_bits", "word"),
    [
        (0, 0, 0),
        (5, 0, 0),
        (63, 0, 0),
        (0, 1, 1),
        (0, 32, 0xFFFF_FFFF),
        (0, 63, 2**63 - 1),
        (0, 64, -1),
        (1, 63, -2),
        (4, 8, 0xFF0),
        (32, 32, -(2**32)),
        (60, 4, -(2**60)),
        (62, 1, 2**62),
        (63, 1, -(2**63)),
    ],
)
def test_ones(first, n_bits, word):
    assert bitmap.ones(first, n_bits) == word


@pytest.mark.usefixtures("tier")
def test_ones_of_every_place_and_length():
    for first in range(64):
        for n_bits in range(65 - first):
            pattern = int(bitmap.ones(first, n_bits)) & ALL
            assert pattern == word_with(*range(first, first + n_bits))


@pytest.mark.usefixtures("tier")
@pytest.mark.parametrize(
    ("word", "first", "rest"),
    [
        (0, 0, 0),
        (-1, 0, -1),
        (-1, 1, -2),
        (-1, 63, -(2**63)),
        (-1, 64, 0),
        (0b1011, 0, 0b1011),
        (0b1011, 1, 0b1010),
        (0b1011, 2, 0b1000),
        (0b1011, 3, 0b1000),
        (0b1011, 4, 0),
        (-(2**63), 63, -(2**63)),
        (2**62, 63, 0),
    ],
)
def test_from_bit(word, first, rest):
    assert bitmap.from_bit(np.int64(word), first) == rest


# -- the summary -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("summary", "word_id", "after"),
    [
        ([0, 0], 0, [1, 0]),
        ([0, 0], 63, [TOP, 0]),
        ([0, 0], 64, [0, 1]),
        ([0b100, 0], 2, [0b100, 0]),
        ([0b100, 0b10], 0, [0b101, 0b10]),
        ([0, 0b11], 69, [0, 0b100011]),
    ],
)
def test_set_in_summary(tier, summary, word_id, after):
    bits = Bitmap(tier, [0] * 70, summary)
    bitmap.set_in_summary(bits.argument, bits.summary_at, word_id)
    assert (bits.summary, bits.words) == (after, [0] * 70)
    bits.check()


@pytest.mark.parametrize(
    ("free", "summary", "word_id", "after"),
    [
        ([], [1, 0], 0, [0, 0]),
        ([], [TOP, 0], 63, [0, 0]),
        ([], [ALL, 0b111111], 64, [ALL, 0b111110]),
        ([], [0, 0], 5, [0, 0]),
        ([5 * 64 + 63], [0b100000, 0], 5, [0b100000, 0]),
        ([5 * 64], [0b100000, 0], 5, [0b100000, 0]),
        ([64 * 64], [0, 0], 64, [0, 1]),
    ],
)
def test_clear_in_summary(tier, free, summary, word_id, after):
    bits = Bitmap(tier, words_with(70, free), summary)
    bitmap.clear_in_summary(bits.argument, FIRST, bits.summary_at, word_id)
    assert (bits.summary, bits.free) == (after, set(free))


@pytest.mark.parametrize(
    ("n_words", "summary", "start", "found"),
    [
        (1, [0], 0, 1),
        (1, [1], 0, 0),
        (1, [1], 1, 1),
        (3, [0b100], 0, 2),
        (3, [0b100], 2, 2),
        (3, [0b011], 2, 3),
        (3, [0b1000], 0, 3),  # a hint past the end is none
        (64, [TOP], 0, 63),
        (64, [TOP], 64, 64),
        (70, [0, 0b10], 0, 65),
        (70, [ALL, 0b10], 64, 65),
        (70, [ALL, 0], 64, 70),
        (70, [TOP, 0b100000], 63, 63),
        (70, [0, 0b100000], 69, 69),
        (70, [0, 0], 5, 70),
        (70, [0, 1 << 10], 5, 70),
        (130, [0, 0, 0b10], 3, 129),
    ],
)
def test_next_word(tier, n_words, summary, start, found):
    bits = Bitmap(tier, [0] * n_words, summary)
    assert bitmap.next_word(bits.argument, bits.summary_at, n_words, start) == found


# -- one block -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "word_id", "block", "words_after"),
    [
        ([0], 0, -1, [0]),
        ([1], 0, 0, [0]),
        ([TOP], 0, 63, [0]),
        ([ALL], 0, 0, [ALL - 1]),
        ([0b1100], 0, 2, [0b1000]),
        ([TOP | 1 << 62], 0, 62, [TOP]),
        ([1, 0, 1], 1, -1, [1, 0, 1]),
        ([1, 2, 1], 1, 65, [1, 0, 1]),
        ([1, ALL, 1], 1, 64, [1, ALL - 1, 1]),
    ],
)
def test_claim_in_word(tier, words, word_id, block, words_after):
    bits = Bitmap(tier, words)
    assert bits.claim_in_word(word_id) == block
    assert (bits.words, bits.summary) == (words_after, exact_summary(words))
    bits.check()


@pytest.mark.parametrize(
    ("words", "summary", "start", "block", "summary_after"),
    [
        ([1], [1], 0, 0, [1]),  # the word is empty now, which the next search notes
        ([0], [1], 0, -1, [0]),
        ([0, 0, 1], [0b111], 0, 128, [0b100]),
        ([0, 0, 1], [0b111], 1, 128, [0b101]),
        ([0, 0, 0], [0b111], 1, -1, [0b001]),
        ([1, 0, 0], [0b111], 1, -1, [0b001]),
        ([0, 1], [0b00], 0, -1, [0b00]),
        ([0, 1], [ALL], 0, 64, [ALL - 1]),
        ([0, 0], [ALL], 0, -1, [ALL - 0b11]),  # hints past the end lead nowhere
    ],
)
def test_claim_where_hinted(tier, words, summary, start, block, summary_after):
    bits = Bitmap(tier, words, summary)
    free = bits.free
    assert bits.claim_where_hinted(start) == block
    assert (bits.free, bits.summary) == (free - {block}, summary_after)


@pytest.mark.parametrize(
    ("words", "summary", "start", "block"),
    [
        ([1], [1], 0, 0),
        ([TOP], [1], 0, 63),
        ([0b10, 0b100], [0b11], 0, 1),
        ([0b10, 0b100], [0b11], 1, 66),  # its own word first
        ([0b10, 0, 0b1000], [0b101], 1, 131),  # then on from there
        ([0b10, 0, 0], [0b001], 1, 1),  # and around
        ([0b10, 0, 0], [0b000], 1, 1),  # whatever the summary says
        ([0b10, 0, 0], [0b111], 1, 1),
        ([0, 0, 0b10], [0b000], 2, 129),
        ([0, 0, 0b10], [0b000], 0, 129),
        ([0b10, 0, 0b10], [0b001], 1, 1),  # a hint goes before a word without one
        ([0, 0b10], [ALL], 0, 65),  # hints past the end lead nowhere
    ],
)
def test_claim_one(tier, words, summary, start, block):
    bits = Bitmap(tier, words, summary)
    free = bits.free
    assert bits.claim_one(start) == block
    assert bits.free == free - {block}


@pytest.mark.parametrize(
    ("free", "start", "block"),
    [
        ([69 * 64 + 7], 0, 69 * 64 + 7),
        ([69 * 64 + 7, 3], 69, 69 * 64 + 7),
        ([68 * 64, 3 * 64], 69, 3 * 64),
        ([63 * 64 + 63], 64, 63 * 64 + 63),
        ([64 * 64], 63, 64 * 64),
    ],
)
def test_claim_one_under_a_summary_of_two_words(tier, free, start, block):
    bits = Bitmap(tier, words_with(70, free))
    assert bits.claim_one(start) == block
    assert bits.free == set(free) - {block}
    bits.check()


def test_claim_elsewhere_comes_to_its_own_word_last(tier):
    bits = Bitmap(tier, [0b1, 0b1, 0b1])
    assert [bits.claim_elsewhere(1) for _ in range(3)] == [128, 0, 64]
    assert bits.words == [0, 0, 0]


@pytest.mark.parametrize("start", [0, 1, 2])
def test_every_block_is_claimed_once(tier, start):
    free = [0, 5, 63, 64, 100, 127, 128, 140]
    bits = Bitmap(tier, words_with(3, free))
    assert sorted(bits.claim_one(start) for _ in free) == free
    assert bits.words == [0, 0, 0]
    assert (bits.claim_where_hinted(), bits.summary) == (bitmap.NONE, [0])


@pytest.mark.parametrize(
    ("words", "block", "was_free", "words_after", "summary_after"),
    [
        ([0], 0, False, [0], [0]),
        ([0b10], 0, False, [0b10], [1]),
        ([0b11], 0, True, [0b10], [1]),
        ([0b10], 1, True, [0], [0]),
        ([TOP], 63, True, [0], [0]),
        ([0, TOP], 127, True, [0, 0], [0]),
        ([1, 1], 64, True, [1, 0], [0b01]),
        ([1, 0], 64, False, [1, 0], [0b01]),
        ([ALL, ALL], 100, True, [ALL, ALL ^ 1 << 36], [0b11]),
    ],
)
def test_claim_of_one_certain_block(tier, words, block, was_free, words_after, summary_after):
    bits = Bitmap(tier, words)
    assert bits.claim_block(block) == was_free
    assert (bits.words, bits.summary) == (words_after, summary_after)


@pytest.mark.parametrize(
    ("words", "block", "words_after", "summary_after"),
    [
        ([0], 0, [1], [1]),
        ([0], 63, [TOP], [1]),
        ([1], 1, [0b11], [1]),
        ([0, 0], 64, [0, 1], [0b10]),
        ([1, 0], 127, [1, TOP], [0b11]),
        ([ALL - 1], 0, [ALL], [1]),
    ],
)
def test_release_block(tier, words, block, words_after, summary_after):
    bits = Bitmap(tier, words)
    bits.release_block(block)
    assert (bits.words, bits.summary) == (words_after, summary_after)
    bits.check()


# -- runs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "n_blocks", "start", "found"),
    [
        ([0], 1, 0, -1),
        ([1], 1, 0, 0),
        ([1], 2, 0, -1),
        ([TOP], 1, 0, 63),
        ([TOP], 2, 0, -1),  # the bitmap ends there
        ([ALL], 64, 0, 0),
        ([ALL], 64, 1, -1),
        ([ALL], 65, 0, -1),
        ([0b0110111], 3, 0, 0),
        ([0b0110111], 2, 3, 4),
        ([0b1110110], 3, 0, 4),
        ([TOP, 1], 2, 0, 63),
        ([TOP, 1], 3, 0, -1),
        ([TOP | 1 << 62, 0b11], 4, 0, 62),
        ([TOP | 1 << 61, 0b11], 3, 0, 63),
        ([ALL, ALL], 128, 0, 0),
        ([ALL - 1, ALL], 127, 0, 1),
        ([ALL - 1, ALL], 128, 0, -1),
        ([TOP, ALL, 1], 66, 0, 63),
        ([TOP, ALL ^ 1 << 31, 1], 33, 0, 96),  # the first 32 end at a taken block
        ([TOP, ALL, 1], 66, 64, -1),
        ([TOP, ALL, 1], 65, 64, 64),
        ([0, 0, ALL], 64, 0, 128),
        ([ALL, 0, ALL], 65, 0, -1),
    ],
)
def test_find_run(tier, words, n_blocks, start, found):
    bits = Bitmap(tier, words)
    assert bits.find_run(n_blocks, start) == found
    assert bits.words == words


@pytest.mark.parametrize(
    ("word", "wanted", "claimed", "after"),
    [
        (ALL, ALL, True, 0),
        (ALL, TOP, True, TOP - 1),
        (TOP, TOP, True, 0),
        (0b1110, 0b0110, True, 0b1000),
        (0b1110, 0b0111, False, 0b1110),
        (0b1110, 0b0001, False, 0b1110),
        (ALL ^ TOP, ALL, False, ALL ^ TOP),
        (0, 1, False, 0),
    ],
)
def test_claim_bits_takes_all_or_none(tier, word, wanted, claimed, after):
    bits = Bitmap(tier, [word])
    assert bitmap.claim_bits(bits.argument, FIRST, signed([wanted])[0]) == claimed
    assert bits.words == [after]


RUNS = [
    # words, first block, blocks, words and summary after
    ([1], 0, 1, [0], [0]),
    ([0b1110], 1, 2, [0b1000], [1]),
    ([ALL], 0, 64, [0], [0]),
    ([ALL], 63, 1, [ALL ^ TOP], [1]),
    ([TOP, 1], 63, 2, [0, 0], [0]),
    ([ALL, ALL], 63, 2, [ALL ^ TOP, ALL - 1], [0b11]),
    ([ALL, ALL, ALL], 60, 72, [2**60 - 1, 0, ALL ^ 0b1111], [0b101]),
    ([ALL, ALL, ALL], 0, 192, [0, 0, 0], [0]),
    ([TOP, ALL, 1], 63, 66, [0, 0, 0], [0]),
    ([1, ALL, 1], 64, 64, [1, 0, 1], [0b101]),
    ([0, ALL, 0b11], 100, 29, [0, 2**36 - 1, 0b10], [0b110]),
]


@pytest.mark.parametrize(("words", "block", "n_blocks", "words_after", "summary_after"), RUNS)
def test_claim_run(tier, words, block, n_blocks, words_after, summary_after):
    bits = Bitmap(tier, words)
    assert bits.claim_run(block, n_blocks) == s.OK
    assert (bits.words, bits.summary) == (words_after, summary_after)
    bits.check()


@pytest.mark.parametrize(("words", "block", "n_blocks", "words_after", "summary_after"), RUNS)
def test_release_run(tier, words, block, n_blocks, words_after, summary_after):
    bits = Bitmap(tier, words_after, summary_after)
    bits.release_run(block, n_blocks)
    assert (bits.words, bits.summary) == (words, exact_summary(words))
    bits.check()


def test_a_run_of_no_blocks_changes_nothing(tier):
    bits = Bitmap(tier, [0b101])
    assert bits.claim_run(1, 0) == s.OK
    bits.release_run(1, 0)
    assert (bits.words, bits.summary) == ([0b101], [1])


# A run over five words; in each word it touches, one of its blocks was lost to another thread.
LONG_RUN = (60, 4 + 3 * 64 + 10)


@pytest.mark.parametrize(
    "lost", [60, 63, 64, 100, 127, 128, 191, 192, 255, 256, 260, 265], ids="block {}".format
)
@pytest.mark.parametrize("elsewhere", [True, False], ids=["more free", "nothing else free"])
def test_a_lost_block_in_any_word_rolls_the_run_back(tier, lost, elsewhere):
    block, n_blocks = LONG_RUN
    free = set(range(block, block + n_blocks)) | ({3, 59, 266, 319} if elsewhere else set())
    bits = Bitmap(tier, words_with(5, free - {lost}))
    before = bits.array.copy()
    assert bits.claim_run(block, n_blocks) == s.ROLLED_BACK
    assert bits.array.tolist() == before.tolist()
    bits.check()


@pytest.mark.parametrize("lost", [63, 130, 265])
def test_a_run_that_was_rolled_back_can_be_claimed_later(tier, lost):
    block, n_blocks = LONG_RUN
    bits = Bitmap(tier, words_with(5, set(range(320)) - {lost}))
    assert bits.claim_run(block, n_blocks) == s.ROLLED_BACK
    bits.release_block(lost)
    assert bits.claim_run(block, n_blocks) == s.OK
    assert bits.free == set(range(320)) - set(range(block, block + n_blocks))
    bits.check()


def test_a_roll_back_restores_hints_that_the_claim_cleared(tier):
    # The middle word runs empty on the way, so its hint goes and has to come back.
    bits = Bitmap(tier, [TOP, ALL, 0b10])
    assert bits.claim_run(63, 66) == s.ROLLED_BACK
    assert (bits.words, bits.summary) == ([TOP, ALL, 0b10], [0b111])


def test_a_roll_back_keeps_what_others_released_meanwhile(plain, monkeypatch):
    bits = Bitmap(plain, [TOP, ALL, 0])
    real = bitmap.claim_bits

    def claim_bits(words, at, wanted):
        if at == FIRST + 2:
            bits.release_block(5)
            bits.release_block(128 + 40)
        return real(words, at, wanted)

    monkeypatch.setattr(bitmap, "claim_bits", claim_bits)
    assert bits.claim_run(63, 66) == s.ROLLED_BACK
    assert bits.words == [TOP | 1 << 5, ALL, 1 << 40]
    bits.check()


# -- counting --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "n_free"),
    [([0], 0), ([1], 1), ([TOP], 1), ([ALL], 64), ([ALL, 0, ALL], 128), ([0b1011, TOP | 1], 5)],
)
def test_count_free(tier, words, n_free):
    assert Bitmap(tier, words).count_free() == n_free


# -- every small case ------------------------------------------------------------------------------

WINDOW = range(60, 68)  # blocks on both sides of a border between words


def windows():
    """Every choice of free blocks in the window."""
    for pattern in range(2 ** len(WINDOW)):
        yield {block for i, block in enumerate(WINDOW) if pattern >> i & 1}


def test_runs_are_found_among_all_patterns_around_a_border(tier):
    starts = range(58, 69) if tier.name == "compiled" else [60, 63, 64]
    for free in windows():
        bits = Bitmap(tier, words_with(2, free))
        for n_blocks in range(1, len(WINDOW) + 1):
            for start in starts:
                assert bits.find_run(n_blocks, start) == first_run(free, n_blocks, start, 128)


def test_runs_are_claimed_or_rolled_back_in_all_patterns_around_a_border(tier):
    spans = [range(a, b) for a in WINDOW for b in range(a + 1, WINDOW.stop + 1)]
    for free in windows():
        words = words_with(2, free)
        for span in spans:
            bits = Bitmap(tier, words)
            code = bits.claim_run(span.start, len(span))
            if free.issuperset(span):
                assert (code, bits.free) == (s.OK, free.difference(span))
                bits.release_run(span.start, len(span))
            else:
                assert code == s.ROLLED_BACK
            assert (bits.words, bits.summary) == (words, exact_summary(words))


def test_every_block_is_claimed_in_all_patterns_around_a_border(tier):
    for free in windows():
        for start in (0, 1):
            bits = Bitmap(tier, words_with(2, free))
            assert {bits.claim_one(start) for _ in free} == free
            assert bits.words == [0, 0]
            assert (bits.claim_where_hinted(), bits.summary) == (bitmap.NONE, [0])


# -- against a set ---------------------------------------------------------------------------------

OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["one", "block", "run", "release", "release run"]),
        st.integers(0, 2**16),
        st.integers(1, 150),
    ),
    max_size=40,
)


@pytest.mark.parametrize("name", TIERS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(n_blocks=st.integers(1, 300), taken=st.integers(0, 2**300), operations=OPERATIONS)
def test_a_bitmap_is_a_set_of_blocks(name, n_blocks, taken, operations):
    with running(name) as tier:
        free = {block for block in range(n_blocks) if not taken >> block & 1}
        n_words = -(-n_blocks // 64)
        bits = Bitmap(tier, words_with(n_words, free))
        for operation, position, length in operations:
            apply(bits, free, operation, position, length, n_blocks)
            assert bits.free == free
            assert bits.count_free() == len(free)
            bits.check()


def apply(bits, free, operation, position, length, n_blocks):
    """Do one thing to the bitmap and to the set."""
    block, length = position % n_blocks, min(length, n_blocks)
    if operation == "one" and free:
        start = position % bits.n_words
        own = [other for other in free if other // 64 == start]
        claimed = bits.claim_one(start)
        assert claimed in free
        assert not own or claimed == min(own)
        free.remove(claimed)
    elif operation == "block":
        assert bits.claim_block(block) == (block in free)
        free.discard(block)
    elif operation == "run":
        found = bits.find_run(length)
        assert found == first_run(free, length, 0, n_blocks)
        if found < 0:
            block = min(block, n_blocks - length)
            before = bits.array.copy()
            assert bits.claim_run(block, length) == s.ROLLED_BACK
            assert bits.array.tolist() == before.tolist()
        else:
            assert bits.claim_run(found, length) == s.OK
            free.difference_update(range(found, found + length))
    elif operation == "release" and block not in free:
        bits.release_block(block)
        free.add(block)
    elif operation == "release run":
        span = range(block, min(block + length, n_blocks))
        if free.isdisjoint(span):
            bits.release_run(span.start, len(span))
            free.update(span)


# -- other threads between two steps ---------------------------------------------------------------
#
# In plain Python another thread's step can be put exactly where it hurts.


@pytest.fixture
def plain():
    with running("plain") as tier:
        yield tier


def before_call(monkeypatch, name, number, step):
    """Let `step` happen before the call `number` (from 1) of an atomic operation."""
    real, calls = getattr(atomics, name), []

    def interrupted(*arguments):
        calls.append(name)
        if len(calls) == number:
            step()
        return real(*arguments)

    monkeypatch.setattr(atomics, name, interrupted)


def test_a_block_lost_between_look_and_swap_is_not_claimed(plain, monkeypatch):
    bits = Bitmap(plain, [0b110])
    taken = []
    before_call(monkeypatch, "compare_and_swap", 1, lambda: taken.append(bits.claim_block(1)))
    assert (bits.claim_in_word(0), taken, bits.words) == (2, [True], [0])
    bits.check()


def test_the_last_block_lost_between_look_and_swap_is_none(plain, monkeypatch):
    bits = Bitmap(plain, [0b100])
    before_call(monkeypatch, "compare_and_swap", 1, lambda: bits.claim_block(2))
    assert (bits.claim_in_word(0), bits.words) == (bitmap.NONE, [0])


def test_a_block_freed_before_the_hint_is_cleared_keeps_its_hint(plain, monkeypatch):
    bits = Bitmap(plain, [0], [1])
    before_call(monkeypatch, "bitwise_and", 1, lambda: bits.release_block(7))
    assert (bits.claim_where_hinted(), bits.words, bits.summary) == (bitmap.NONE, [1 << 7], [1])


def test_a_block_freed_after_the_hint_is_cleared_sets_it_again(plain, monkeypatch):
    bits = Bitmap(plain, [0], [1])
    # The search loads the hints and the word, clears its hint, and loads the word again.
    before_call(monkeypatch, "load", 3, lambda: bits.release_block(7))
    assert (bits.claim_where_hinted(), bits.words, bits.summary) == (bitmap.NONE, [1 << 7], [1])


@pytest.mark.parametrize("number", range(1, 12))
def test_a_block_that_moves_during_the_search_is_found(plain, monkeypatch, number):
    # One block is free at all times, always behind the searching thread's back.
    bits = Bitmap(plain, [0, 0, 0b1])
    moves = iter(pairwise([128, 0, 64, 191]))
    real, calls = atomics.load, []

    def load(words, index):
        calls.append(index)
        if len(calls) % number == 0:
            monkeypatch.setattr(atomics, "load", real)
            for old, new in [next(moves, (None, None))]:
                if old is not None and bits.claim_block(old):
                    bits.release_block(new)
            monkeypatch.setattr(atomics, "load", load)
        return real(words, index)

    monkeypatch.setattr(atomics, "load", load)
    block = bits.claim_one(0)
    monkeypatch.setattr(atomics, "load", real)
    assert block in (128, 0, 64, 191)
    assert bits.words == [0, 0, 0]


def test_a_run_lost_between_search_and_claim_is_rolled_back(plain, monkeypatch):
    bits = Bitmap(plain, [ALL, ALL])
    found = bits.find_run(100)
    before_call(monkeypatch, "compare_and_swap", 2, lambda: bits.claim_block(99))
    assert (found, bits.claim_run(found, 100)) == (0, s.ROLLED_BACK)
    assert bits.free == set(range(128)) - {99}
    bits.check()
