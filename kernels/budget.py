"""The budget in words: bytes are reserved and released in one step each, and never pass the limit.

`USED` is what is charged; a reservation compares and swaps it, so no two threads get the same last
bytes, and its highest value is kept exactly. `RESIDENT` adds to that the pages of freed blocks that
the system has not got back: it bounds what the process can have in memory. Called by
`allocation` and `release` for blocks, by `jessymem.budget` for regions.
"""

from __future__ import annotations

from jessymem.kernels import atomics, memory
from jessymem.kernels._jit import MEMORY, Int, kernel, on_promotion
from jessymem.kernels.memory import Words
from jessymem.kernels.schema import (
    HELD_BACK,
    IS_REARMED,
    LIMIT,
    OF_REGIONS,
    OK,
    OVER_LIMIT,
    PEAK,
    REARM_BELOW,
    RESIDENT,
    RESIDENT_LIMIT,
    RETAINED,
    USED,
)
from jessymem.kernels.transactions import entry


@kernel
def reserve(state: Words, n_bytes: Int, limit_at: Int) -> Int:
    """Charge `n_bytes` if they fit the limit in word `limit_at`; return OK or OVER_LIMIT."""
    used = atomics.load(state, USED)
    while used + n_bytes <= atomics.load(state, limit_at):
        if atomics.compare_and_swap(state, USED, used, used + n_bytes):
            raise_peak(state, used + n_bytes)
            return OK
        used = atomics.load(state, USED)
    return OVER_LIMIT


@kernel
def raise_peak(state: Words, used: Int) -> None:
    """Keep `used` if it is the highest so far."""
    peak = atomics.load(state, PEAK)
    while used > peak and not atomics.compare_and_swap(state, PEAK, peak, used):
        peak = atomics.load(state, PEAK)


@kernel
def release(state: Words, n_bytes: Int) -> Int:
    """Take a charge back; return OK, or IS_REARMED where a threshold may speak again."""
    used = atomics.add(state, USED, -n_bytes) - n_bytes
    return IS_REARMED if used < atomics.load(state, REARM_BELOW) else OK


@kernel
def admit(state: Words, n_bytes: Int) -> Int:
    """Let `n_bytes` become resident; return OK, or RETAINED: pages must be returned first."""
    resident = atomics.load(state, RESIDENT)
    while resident + n_bytes <= atomics.load(state, RESIDENT_LIMIT):
        if atomics.compare_and_swap(state, RESIDENT, resident, resident + n_bytes):
            return OK
        resident = atomics.load(state, RESIDENT)
    return RETAINED


@entry
@kernel(nogil=False)
def dismiss(state: Words, n_bytes: Int) -> None:
    """Note that `n_bytes` are no longer resident."""
    atomics.add(state, RESIDENT, -n_bytes)


@entry
@kernel(nogil=False)
def charge(state: Words, n_bytes: Int, limit_at: Int) -> Int:
    """Admit and reserve for regions, or neither; return OK or the code that says why not."""
    code = admit(state, n_bytes)
    if code != OK:
        # Of the two reasons the lasting one is told.
        over = atomics.load(state, USED) + n_bytes > atomics.load(state, limit_at)
        return OVER_LIMIT if over else RETAINED
    code = reserve(state, n_bytes, limit_at)
    if code == OK:
        atomics.add(state, OF_REGIONS, n_bytes)
    else:
        dismiss(state, n_bytes)
    return code


@entry
@kernel(nogil=False)
def discharge(state: Words, n_bytes: Int) -> Int:
    """Undo `charge`; return what `release` does."""
    atomics.add(state, OF_REGIONS, -n_bytes)
    code = release(state, n_bytes)
    dismiss(state, n_bytes)
    return code


@entry
@kernel(nogil=False)
def hold_back(state: Words, n_bytes: Int) -> Int:
    """Take so many bytes from everybody, as `charge` does and with its codes."""
    code = charge(state, n_bytes, LIMIT)
    if code == OK:
        atomics.add(state, HELD_BACK, n_bytes)
    return code


@entry
@kernel(nogil=False)
def give_back(state: Words, n_bytes: Int) -> None:
    """Undo `hold_back`; the peak begins anew at what is in use."""
    discharge(state, n_bytes)
    atomics.add(state, HELD_BACK, -n_bytes)
    atomics.store(state, PEAK, 0)
    raise_peak(state, atomics.load(state, USED))


@on_promotion(MEMORY)
def _call_first() -> None:
    state = memory.empty_state()
    charge(state, 0, LIMIT)
    hold_back(state, 0)
    give_back(state, 0)
    discharge(state, 0)
    dismiss(state, 0)
