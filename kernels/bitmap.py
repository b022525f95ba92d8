"""Which blocks are free: one bit each (1 = free), claimed and released by any number of threads.

Two levels: `words` hold the bits; of the *summary*, one bit tells of one word whether it may hold a
free block. It is only a hint: between an emptied word and its cleared bit another thread may have
freed there, so nobody concludes from the summary that there is nothing. Who claims has counted his
blocks off the pool's free count first, and who releases adds to it last; so at least as many bits
are set as have been counted off and not yet claimed, and a search for one must end.

A bitmap is given as an array of words, its first word there, the number of its words, and the first
word of its summary. Called by `blocks`, `allocation` and `pages`.
"""

from __future__ import annotations

import numpy as np

from jessymem.kernels import atomics
from jessymem.kernels._jit import Int, kernel
from jessymem.kernels.memory import Words
from jessymem.kernels.schema import OK, ROLLED_BACK, WORD_BITS

NONE = -1


# -- bits of one word ------------------------------------------------------------------------------


@kernel
def bit(i: Int) -> Int:
    """Return the word in which only bit `i` is set."""
    return np.int64(1) << np.int64(i)


@kernel
def ones(first: Int, n_bits: Int) -> Int:
    """Return the word in which `n_bits` bits (0 to 64) from `first` on are set."""
    if n_bits >= WORD_BITS:
        return np.int64(-1)
    return ~(np.int64(-1) << np.int64(n_bits)) << np.int64(first)


@kernel
def from_bit(word: Int, first: Int) -> Int:
    """Return `word` without its bits below `first` (0 to 64)."""
    if first >= WORD_BITS:
        return np.int64(0)
    return np.int64(word) & (np.int64(-1) << np.int64(first))


@kernel
def set_in_summary(words: Words, summary: Int, word_id: Int) -> None:
    """Note that a word may hold free blocks."""
    at = summary + word_id // WORD_BITS
    flag = bit(word_id % WORD_BITS)
    if not atomics.load(words, at) & flag:
        atomics.bitwise_or(words, at, flag)


@kernel
def clear_in_summary(words: Words, first: Int, summary: Int, word_id: Int) -> None:
    """Note that a word ran empty, unless something was freed in it meanwhile."""
    at = summary + word_id // WORD_BITS
    atomics.bitwise_and(words, at, ~bit(word_id % WORD_BITS))
    if atomics.load(words, first + word_id) != 0:
        set_in_summary(words, summary, word_id)


# -- one block -------------------------------------------------------------------------------------


@kernel
def claim_in_word(words: Words, first: Int, word_id: Int) -> Int:
    """Claim the lowest free block of one word; return its number, or NONE."""
    word = atomics.load(words, first + word_id)
    while word != 0:
        lowest = atomics.count_trailing_zeros(word)
        if atomics.compare_and_swap(words, first + word_id, word, word ^ bit(lowest)):
            return word_id * WORD_BITS + lowest
        word = atomics.load(words, first + word_id)
    return NONE


@kernel
def next_word(words: Words, summary: Int, n_words: Int, word_id: Int) -> Int:
    """Return the first word from `word_id` on that the summary calls promising, or `n_words`."""
    start = word_id
    while start < n_words:
        hints = from_bit(atomics.load(words, summary + start // WORD_BITS), start % WORD_BITS)
        start -= start % WORD_BITS
        if hints != 0:
            return min(start + atomics.count_trailing_zeros(hints), n_words)
        start += WORD_BITS
    return n_words


@kernel
def claim_where_hinted(words: Words, first: Int, n_words: Int, summary: Int, start: Int) -> Int:
    """Claim a free block where the summary points, from word `start` on; return it, or NONE.

    Who finds a word empty notes it, not who empties it: near a full pool one block is released and
    forth, and the note would cost more than the claim.
    """
    word_id = next_word(words, summary, n_words, start)
    while word_id < n_words:
        block = claim_in_word(words, first, word_id)
        if block >= 0:
            return block
        clear_in_summary(words, first, summary, word_id)
        word_id = next_word(words, summary, n_words, word_id + 1)
    return NONE


@kernel
def claim_elsewhere(words: Words, first: Int, n_words: Int, summary: Int, start: Int) -> Int:
    """Claim a free block in any word; return its number. As `claim_one`, which looked in `start`.

    First where the summary points, from `start` on and around, then in every word.
    """
    block: Int = NONE
    while block < 0:
        block = claim_where_hinted(words, first, n_words, summary, start + 1)
        if block < 0:
            block = claim_where_hinted(words, first, n_words, summary, 0)
        word_id = 0
        while word_id < n_words and block < 0:
            block = claim_in_word(words, first, word_id)
            word_id += 1
    return block


@kernel
def claim_one(words: Words, first: Int, n_words: Int, summary: Int, start: Int) -> Int:
    """Claim a free block, in word `start` if that has one; return its number.

    The caller has counted one block off the free count, so there is one: it may only move, and is
    looked for until it is found.
    """
    block = claim_in_word(words, first, start)
    return block if block >= 0 else claim_elsewhere(words, first, n_words, summary, start)


@kernel
def release_block(words: Words, first: Int, summary: Int, block: Int) -> None:
    """Make a block free; the caller adds it to the free count afterwards."""
    word_id = block // WORD_BITS
    atomics.bitwise_or(words, first + word_id, bit(block % WORD_BITS))
    set_in_summary(words, summary, word_id)


# -- runs ------------------------------------------------------------------------------------------


@kernel
def find_run(words: Words, first: Int, n_words: Int, n_blocks: Int, start: Int) -> Int:
    """Find `n_blocks` free blocks in a row, from block `start` on; return the first, or NONE.

    Nothing is claimed: another thread may be quicker.
    """
    run_start, block = np.int64(start), np.int64(start)
    while block < n_words * WORD_BITS:
        in_word = block % WORD_BITS
        taken = from_bit(~atomics.load(words, first + block // WORD_BITS), in_word)
        n_free = atomics.count_trailing_zeros(taken) - in_word
        if block + n_free - run_start >= n_blocks:
            return run_start
        block += n_free
        if in_word + n_free < WORD_BITS:
            block += 1
            run_start = block
    return NONE


@kernel
def claim_bits(words: Words, at: Int, bits: Int) -> bool:
    """Claim several blocks of one word, all or none; tell whether all were free."""
    word = atomics.load(words, at)
    while word & bits == bits:
        if atomics.compare_and_swap(words, at, word, word ^ bits):
            return True
        word = atomics.load(words, at)
    return False


@kernel
def claim_run(words: Words, first: Int, summary: Int, block: Int, n_blocks: Int) -> Int:
    """Claim certain blocks in a row, counted off before; return OK or ROLLED_BACK.

    Word by word. Where another thread was quicker, what was taken so far is released.
    """
    done = np.int64(0)
    while done < n_blocks:
        at = block + done
        n_here = min(n_blocks - done, WORD_BITS - at % WORD_BITS)
        if not claim_bits(words, first + at // WORD_BITS, ones(at % WORD_BITS, n_here)):
            release_run(words, first, summary, block, done)
            return ROLLED_BACK
        if atomics.load(words, first + at // WORD_BITS) == 0:
            clear_in_summary(words, first, summary, at // WORD_BITS)
        done += n_here
    return OK


@kernel
def release_run(words: Words, first: Int, summary: Int, block: Int, n_blocks: Int) -> None:
    """Make blocks in a row free; the caller adds them to the free count afterwards."""
    done = np.int64(0)
    while done < n_blocks:
        at = block + done
        n_here = min(n_blocks - done, WORD_BITS - at % WORD_BITS)
        atomics.bitwise_or(words, first + at // WORD_BITS, ones(at % WORD_BITS, n_here))
        set_in_summary(words, summary, at // WORD_BITS)
        done += n_here


# -- counting --------------------------------------------------------------------------------------


@kernel
def count_free(words: Words, first: Int, n_words: Int) -> Int:
    """Count the free blocks."""
    n_free = np.int64(0)
    for i in range(first, first + n_words):
        n_free += atomics.count_ones(atomics.load(words, i))
    return n_free
