"""Blocks, views, arrays and regions in any order, against a slow model of sets and dicts.

The model knows which blocks of which pool are taken, foretells where a request must go or why it
must be refused, and what is charged; each block holds a content of its own that is checked when it
is dropped. Every run ends with `validate()`, and so does every step of a short one.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)
from support import samples
from support.internals import allocator_of
from support.regions import write_sparse
from support.samples import sampled
from support.shown import check_shown

from jessymem import (
    AllocationFailed,
    InvalidAccess,
    LimitExceeded,
    MemoryConfig,
    MmapManager,
    MmapOffset,
    OutOfBounds,
    osmem,
)
from jessymem.kernels import _jit

KIB = 2**10
MIB = 2**20
POOLS = ((1, KIB), (1, 4 * KIB), (1, 64 * KIB), (1, 256 * KIB))
REGIONS = {20: 300_000, 21: MIB, 22: 5 * MIB // 2}


@dataclass
class Pool:
    """One pool: its blocks by number, and which are taken."""

    block_size: int
    n_blocks: int
    taken: set[int] = field(default_factory=set)

    @property
    def n_free(self) -> int:
        return self.n_blocks - len(self.taken)

    def runs(self) -> list[int]:
        """The lengths of the rows of free blocks."""
        free = "".join(" " if n in self.taken else "." for n in range(self.n_blocks))
        return [len(run) for run in free.split()]


@dataclass
class Block:
    """What was handed out: where, how much, its content, and who still looks at it."""

    offset: MmapOffset
    n_bytes: int
    tag: int
    n_views: int = 0
    is_waiting: bool = False


class Model:
    """Sets of blocks; what is charged is added up anew whenever it is asked for."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.critical = int(0.95 * limit)
        self.pools: dict[int, Pool] = {}
        self.n_fixed = 0
        self.blocks: list[Block] = []
        self.regions: dict[int, int] = {}
        self.held_regions: list[int] = []

    @property
    def charged(self) -> int:
        blocks = sum(len(pool.taken) * pool.block_size for pool in self.pools.values())
        return blocks + sum(self.regions.values()) + sum(self.held_regions)

    @property
    def grown(self) -> int:
        sizes = (pool.block_size * pool.n_blocks for pool in self.pools.values())
        return sum(list(sizes)[self.n_fixed :])

    def numbers_of(self, offset: MmapOffset, n_bytes: int) -> set[int]:
        """The blocks that an allocation of `n_bytes` at `offset` takes."""
        pool = self.pools[offset.pool_id]
        assert offset.offset % pool.block_size == 0
        first = offset.offset // pool.block_size
        numbers = set(range(first, first + -(-n_bytes // pool.block_size)))
        assert max(numbers) < pool.n_blocks
        return numbers

    def cost_of_best(self, n_bytes: int) -> int:
        sizes = sorted(pool.block_size for pool in self.pools.values())
        block = next((size for size in sizes if size >= n_bytes), sizes[-1])
        return -(-n_bytes // block) * block

    def foretell(self, n_bytes: int) -> int | type[Exception]:
        """Return the size of the blocks that a request takes, 0: of a new pool; or why not.

        Of several pools that are equally good any may be taken.
        """
        largest = max(pool.block_size for pool in self.pools.values())
        for block_size in sorted({pool.block_size for pool in self.pools.values()}):
            alike = [pool for pool in self.pools.values() if pool.block_size == block_size]
            if n_bytes <= block_size:
                cost, fits = block_size, any(pool.n_free for pool in alike)
            elif block_size == largest:
                cost = -(-n_bytes // block_size) * block_size
                fits = any(cost <= run * block_size for pool in alike for run in pool.runs())
            else:
                continue
            if fits:
                return block_size if self.charged + cost <= self.critical else LimitExceeded
        cost = self.cost_of_best(n_bytes)
        if self.charged + cost > self.critical:
            return LimitExceeded
        return 0 if self.grown + cost <= 4 * self.limit else AllocationFailed

    def reason(self, n_bytes: int) -> str:
        """Tell whether enough blocks are free, though not in a row."""
        largest = max(pool.block_size for pool in self.pools.values())
        if n_bytes <= largest:
            return "pool_full"
        n_blocks = -(-n_bytes // largest)
        alike = [pool for pool in self.pools.values() if pool.block_size == largest]
        return "fragmented" if any(pool.n_free >= n_blocks for pool in alike) else "pool_full"


sizes = st.one_of(
    st.integers(1, 6 * KIB),
    st.integers(1, 300 * KIB),
    st.integers(256 * KIB, 3 * MIB),
    st.sampled_from([1, KIB, KIB + 1, 4 * KIB, 64 * KIB, 64 * KIB + 1, 256 * KIB, MIB]),
)


class Blocks(RuleBasedStateMachine):
    """Everything that can be done to a manager's memory, checked against the model."""

    live = Bundle("live")
    views = Bundle("views")
    gone = Bundle("gone")
    checks_every_step = True

    @initialize(limit_mb=st.sampled_from([3, 6, 16]), zero=st.booleans())
    def begin(self, limit_mb, zero):
        self.base = Path(tempfile.mkdtemp())
        for number, n_bytes in REGIONS.items():
            write_sparse(self.base, number, n_bytes, n_layers=1)
        config = MemoryConfig(limit_mb, base_path=self.base, pool_configs=POOLS, zero_on_reuse=zero)
        self.zero = zero
        self.manager = MmapManager(config)
        self.allocator = allocator_of(self.manager)
        self.model = Model(limit_mb * MIB)
        self.tag = 0
        self.see_pools()
        self.model.n_fixed = len(POOLS)

    # -- what every step may do --------------------------------------------------------------------

    def see_pools(self):
        """Take in pools that were made, or have grown; only empty grown ones may be gone."""
        present = {pool.pool_id: pool for pool in self.allocator.pools}
        known = self.model.pools
        for number, pool in present.items():
            if number not in known:
                known[number] = Pool(pool.block_size, pool.total_blocks)
                assert pool.is_grown or number < len(POOLS)
            assert pool.total_blocks >= known[number].n_blocks
            assert pool.is_grown or pool.total_blocks == known[number].n_blocks
            known[number].n_blocks = pool.total_blocks
        for number in [number for number in known if number not in present]:
            assert number >= self.model.n_fixed
            assert not known.pop(number).taken

    def enter(self, offset, n_bytes):
        """Note a new block in the model; check that it is nobody's, and what is in it; write it."""
        self.see_pools()
        numbers = self.model.numbers_of(offset, n_bytes)
        pool = self.model.pools[offset.pool_id]
        assert not numbers & pool.taken
        pool.taken |= numbers
        self.tag = self.tag % 255 + 1
        block = Block(offset, n_bytes, self.tag)
        self.model.blocks.append(block)
        with self.manager.view(offset, n_bytes) as view:
            content = np.frombuffer(view, np.uint8)
            assert not self.zero or not content.any()
            content[:] = block.tag
            del content
        return block

    def leave(self, block):
        """Take a block out of the model."""
        self.model.blocks.remove(block)
        pool = self.model.pools[block.offset.pool_id]
        pool.taken -= self.model.numbers_of(block.offset, block.n_bytes)
        if block.offset.pool_id >= self.model.n_fixed and not pool.taken:
            del self.model.pools[block.offset.pool_id]

    def free(self, block):
        """What a deallocation does in the model."""
        if block.n_views:
            block.is_waiting = True
        else:
            self.leave(block)

    # -- the rules ---------------------------------------------------------------------------------

    @rule(target=live, n_bytes=sizes)
    def allocate(self, n_bytes):
        expected = self.model.foretell(n_bytes)
        if isinstance(expected, int):
            offset = self.manager.allocate(n_bytes)
            self.see_pools()
            block_size = self.model.pools[offset.pool_id].block_size
            assert block_size == expected or (
                expected == 0 and offset.pool_id >= self.model.n_fixed
            )
            return self.enter(offset, n_bytes)
        with pytest.raises(expected) as caught:
            self.manager.allocate(n_bytes)
        assert caught.value.requested == n_bytes
        if expected is AllocationFailed:
            assert caught.value.reason == self.model.reason(n_bytes)
        return multiple()

    @rule(target=live, wanted=st.lists(sizes, min_size=1, max_size=12))
    def allocate_many(self, wanted):
        try:
            packed = self.manager.allocate_many(wanted)
        except (LimitExceeded, AllocationFailed) as error:
            assert error.requested in (*wanted, sum(wanted))
            total = self.model.charged + sum(map(self.model.cost_of_best, wanted))
            assert total > self.model.critical or any(
                self.model.foretell(n_bytes) != 256 * KIB for n_bytes in wanted
            )
            return multiple()
        found = [
            self.enter(MmapOffset.from_packed(number), n_bytes)
            for number, n_bytes in zip(packed, wanted, strict=True)
        ]
        assert self.model.charged <= self.model.critical
        return multiple(*found)

    @rule(target=live, n_bytes=st.integers(1, 4 * KIB), n_blocks=st.integers(20, 200))
    def allocate_alike(self, n_bytes, n_blocks):
        """Enough of one kind to fill a pool in a few steps."""
        return self.allocate_many([n_bytes] * n_blocks)

    @rule(target=gone, block=consumes(live), says_size=st.booleans())
    def deallocate(self, block, says_size):
        with self.manager.view(block.offset, block.n_bytes) as view:
            assert (np.frombuffer(view, np.uint8) == block.tag).all()
        self.manager.deallocate(block.offset, block.n_bytes if says_size else None)
        self.free(block)
        return block

    @rule(target=gone, block=consumes(live))
    def deallocate_without_generation(self, block):
        self.manager.deallocate(MmapOffset(block.offset.pool_id, block.offset.offset))
        self.free(block)
        return block

    @rule(target=gone, chosen=st.lists(consumes(live), min_size=1, max_size=8))
    def deallocate_many(self, chosen):
        self.manager.deallocate_many([block.offset for block in chosen])
        for block in chosen:
            self.free(block)
        return multiple(*chosen)

    @rule(target=views, block=live, share=st.floats(0, 1))
    def take_view(self, block, share):
        n_bytes = int(share * block.n_bytes)
        view = self.manager.view(block.offset, n_bytes)
        assert (len(view), view.readonly) == (n_bytes, False)
        block.n_views += 1
        return [block, view]

    @rule(held=consumes(views))
    def drop_view(self, held):
        block, view = held
        assert set(view[::97]) <= {block.tag}
        held.clear()
        del view
        block.n_views -= 1
        if block.is_waiting and not block.n_views:
            self.leave(block)

    @rule(n_elements=st.integers(1, 50_000), dtype=st.sampled_from(["u1", "<f8", "i4,S3"]))
    def use_an_array(self, n_elements, dtype):
        """It comes and goes within the step."""
        expected = self.model.foretell(n_elements * np.dtype(dtype).itemsize)
        before = self.model.charged
        if isinstance(expected, int):
            array = self.manager.allocate_array(n_elements, dtype)
            assert array.shape == (n_elements,)
            assert not self.zero or array.tobytes() == bytes(array.nbytes)
            assert self.allocator.usage[0] > before
        else:
            with pytest.raises(expected):
                self.manager.allocate_array(n_elements, dtype)

    @rule()
    def trim(self):
        assert self.manager.trim() >= 0
        stats = self.manager.get_stats()
        assert stats.retained_bytes == 0 or osmem.page_size() > 4 * KIB or self.shares_pages()

    def shares_pages(self):
        """Whether small blocks in use may keep the pages of free ones."""
        return bool(self.model.pools[0].taken) or not osmem.CAN_RETURN_PAGES

    @rule(number=st.sampled_from(sorted(REGIONS)))
    def load_or_unload(self, number):
        if number in self.model.regions:
            self.manager.unload_dimension(number)
            del self.model.regions[number]
            return
        n_bytes = osmem.round_to_pages(REGIONS[number])
        if self.model.charged + n_bytes <= self.model.limit:
            self.manager.load_dimension(number)
            self.manager.pin(number)  # what may go is a matter of its own
            self.model.regions[number] = n_bytes
        else:
            with pytest.raises(LimitExceeded) as caught:
                self.manager.load_dimension(number)
            assert caught.value.current == self.model.charged

    @precondition(lambda self: self.model.regions)
    @rule(data=st.data())
    def unload_under_a_view(self, data):
        number = data.draw(st.sampled_from(sorted(self.model.regions)))
        view = self.manager.access_layer(f"L{number:02d}-00")
        self.manager.unload_dimension(number)
        n_bytes = self.model.regions.pop(number)
        self.model.held_regions.append(n_bytes)
        assert self.manager.get_stats().waiting_bytes >= n_bytes
        assert self.allocator.usage[0] == self.model.charged
        del view
        self.model.held_regions.remove(n_bytes)

    # -- wrong calls -------------------------------------------------------------------------------

    @rule(block=gone)
    def use_what_was_given_back(self, block):
        for call in (
            lambda: self.manager.deallocate(block.offset),
            lambda: self.manager.deallocate(block.offset, block.n_bytes),
            lambda: self.manager.view(block.offset, 1),
            lambda: self.manager.deallocate_many([block.offset]),
        ):
            with pytest.raises(InvalidAccess) as caught:
                call()
            assert repr(block.offset) in str(caught.value)

    @rule(block=live, by=st.integers(1, 5 * MIB), is_checked=st.booleans())
    def point_elsewhere(self, block, by, is_checked):
        """Into the block, past it, at another: refused unless a live block begins there."""
        offset = block.offset
        wanted = MmapOffset(
            offset.pool_id, offset.offset + by, offset.generation if is_checked else -1
        )
        live = [
            other
            for other in self.model.blocks
            if (other.offset.pool_id, other.offset.offset) == (wanted.pool_id, wanted.offset)
            and not other.is_waiting
            and wanted.generation in (-1, other.offset.generation)
        ]
        if live:
            assert len(self.manager.view(wanted, live[0].n_bytes)) == live[0].n_bytes
        else:
            with pytest.raises(InvalidAccess):
                self.manager.deallocate(wanted)

    @rule(block=live, size=st.integers(1, 4 * MIB))
    def say_another_size(self, block, size):
        if size != block.n_bytes:
            with pytest.raises(InvalidAccess):
                self.manager.deallocate(block.offset, size)
        if size > block.n_bytes:
            with pytest.raises(OutOfBounds):
                self.manager.view(block.offset, size)

    @rule(block=live, pool=st.integers(0, 130))
    def say_another_pool(self, block, pool):
        offset = MmapOffset(pool, block.offset.offset, block.offset.generation)
        if any(other.offset == offset and not other.is_waiting for other in self.model.blocks):
            return
        with pytest.raises(InvalidAccess):
            self.manager.deallocate(offset)

    @rule(good=live, bad=gone)
    def free_good_with_bad(self, good, bad):
        with pytest.raises(InvalidAccess) as caught:
            self.manager.deallocate_many([good.offset, bad.offset])
        assert caught.value.offset == bad.offset

    @rule(n_bytes=st.sampled_from([0, -1, 2**62, 2**80]))
    def ask_for_what_cannot_be(self, n_bytes):
        with pytest.raises((ValueError, LimitExceeded)):
            self.manager.allocate(n_bytes)

    # -- what always holds -------------------------------------------------------------------------

    @invariant()
    def numbers_agree(self):
        if not hasattr(self, "manager"):
            return
        self.see_pools()
        model = self.model
        assert self.allocator.usage == (model.charged, model.limit)
        used = {pool.pool_id: pool.used_blocks for pool in self.allocator.pools}
        assert used == {number: len(pool.taken) for number, pool in model.pools.items()}
        if self.checks_every_step:
            self.check_stats()

    def check_stats(self):
        assert self.allocator.validate() == []
        stats, model = check_shown(self.manager), self.model
        waiting = [block for block in model.blocks if block.is_waiting]
        requested = sum(block.n_bytes for block in model.blocks if not block.is_waiting)
        regions = sum(REGIONS[number] for number in model.regions)
        assert stats.total_allocated_bytes == model.charged <= stats.peak_usage_bytes
        assert stats.total_used_bytes == requested + regions
        assert stats.waiting_bytes == sum(
            len(model.numbers_of(block.offset, block.n_bytes))
            * model.pools[block.offset.pool_id].block_size
            for block in waiting
        )
        assert stats.total_allocations - stats.total_deallocations == len(model.blocks) - len(
            waiting
        )
        assert stats.largest_free_run_bytes == max(
            run * pool.block_size for pool in model.pools.values() for run in [*pool.runs(), 0]
        )
        assert stats.total_allocated_bytes + stats.retained_bytes <= model.limit

    def teardown(self):
        if not hasattr(self, "manager"):
            return
        try:
            self.check_stats()
            self.manager.close()
            charged = sum(
                len(self.model.numbers_of(block.offset, block.n_bytes))
                * self.model.pools[block.offset.pool_id].block_size
                for block in self.model.blocks
                if block.n_views
            )
            assert self.allocator.usage[0] == charged
            assert self.allocator.validate() == []
        finally:
            shutil.rmtree(self.base)


class BlocksAtLength(Blocks):
    """Long runs, which come to nearly full pools; checked in full at their end."""

    checks_every_step = False


def at_most(n_examples, n_steps):
    """Settings of a run that is the same every time."""
    scale = 4 if _jit.is_disabled() else 1
    return settings(
        max_examples=max(n_examples // scale, 1),
        stateful_step_count=n_steps,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
    )


TestBlocks = Blocks.TestCase
TestBlocks.settings = at_most(samples.number(20, of=60), 30)
TestBlocks.pytestmark = [sampled]
TestBlocksAtLength = BlocksAtLength.TestCase
TestBlocksAtLength.settings = at_most(samples.number(20, of=60), 100)
TestBlocksAtLength.pytestmark = [sampled]
