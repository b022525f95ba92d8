"""`MemoryConfig`: what a manager may use, and where it finds its files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from numbers import Real
from pathlib import Path
from typing import Any, Final

import numpy as np

import jessymem
from jessymem import osmem
from jessymem.errors import ConfigError, shown
from jessymem.ids import DimensionId, DimensionLike, as_dimension_id, as_integer
from jessymem.kernels.schema import N_CORE_DIMENSIONS, N_POOL_IDS, POOL_BYTES_LIMIT

MIB: Final = 2**20

SIMULATION_MODES: Final = ("auto", "never", "always")
ADVICE_MODES: Final = ("willneed", "random", "sequential", "none")
LOAD_MODES: Final = ("map", "copy")
GUARDS: Final = ("none", "lease")
STATUS_MODES: Final = ("off", "auto")
HUGE_PAGES: Final = ("never", "thp", "2MB", "1GB")
NUMA_POLICIES: Final = ("none", "interleave", "local")
EVICTION_POLICIES: Final = ("lru", "lfu", "sieve")

_THRESHOLDS: Final = ("warning_threshold", "eviction_threshold", "critical_threshold")

#: More than any machine has; sums of it stay within 63 bits.
MAX_TOTAL_MB: Final = 2**41

#: The budget by default, in MiB, and its parts: what core files may take together beyond their
#: slots, and what grown and user dimensions are expected to take.
DEFAULT_TOTAL_MB: Final = 280
CORE_HEADROOM_MB: Final = 20
GROWN_MB: Final = 80
USER_MB: Final = 32


def _config_error(field: str, value: Any, expected: str) -> ConfigError:
    return ConfigError(f"{field} must be {expected}, not {shown(value)}", field=field, value=value)


def part_of(total_mb: int, default_mb: int) -> int:
    """Return a part of a budget of `total_mb`, all in MiB: `default_mb` of the default budget.

    In proportion for a larger budget. A smaller one has it as it is: a part bounds what one kind of
    file may take of the budget, and the budget itself bounds them all.
    """
    return max(default_mb, default_mb * total_mb // DEFAULT_TOTAL_MB)


@contextmanager
def naming_fields(names: Mapping[str, str]) -> Iterator[None]:
    """Let a ConfigError name parameters as the caller knows them: `names` by the fields' own."""
    try:
        yield
    except ConfigError as error:
        if error.field not in names:
            raise
        given = names[error.field]
        message = error.message.replace(error.field, given, 1)
        raise ConfigError(message, **{**error.details, "field": given}) from None


def _as_int(field: str, value: Any, at_least: int) -> int:
    try:
        number = as_integer(value, field)
    except TypeError:
        number = at_least - 1
    if number < at_least:
        raise _config_error(field, value, f"an integer of at least {at_least}")
    return number


def _as_share(field: str, value: Any) -> float:
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not 0 < value <= 1:
        raise _config_error(field, value, "a number above 0, at most 1")
    return float(value)


def _as_bool(field: str, value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise _config_error(field, value, "True or False")
    return bool(value)


def _check_choice(field: str, value: Any, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise _config_error(field, value, "one of " + ", ".join(map(repr, choices)))


@dataclass(frozen=True)
class PoolConfig:
    """One pool of equal blocks.

    Parameters
    ----------
    size_mb : int
        The pool's size in MiB, at most 16,384.
    block_size : int
        Bytes of one block: a power of two, at least 64, that divides the pool.

    Raises
    ------
    ConfigError
        If a field is out of range.

    Examples
    --------
    >>> PoolConfig(size_mb=8, block_size=4096)
    PoolConfig(size_mb=8, block_size=4096)
    >>> PoolConfig(size_mb=8, block_size=5000)
    Traceback (most recent call last):
        ...
    jessymem.errors.ConfigError: block_size must be a power of two, not 5000
    """

    size_mb: int
    block_size: int

    def __post_init__(self) -> None:
        """Check both fields, and keep them as plain integers."""
        for name, at_least in (("size_mb", 1), ("block_size", 64)):
            object.__setattr__(self, name, _as_int(name, getattr(self, name), at_least))
        if self.block_size & (self.block_size - 1):
            raise _config_error("block_size", self.block_size, "a power of two")
        if self.size_mb * MIB > POOL_BYTES_LIMIT:
            most = POOL_BYTES_LIMIT // MIB
            raise _config_error("size_mb", self.size_mb, f"at most {most:,}")
        if self.block_size > self.size_mb * MIB:
            raise _config_error("block_size", self.block_size, "no larger than its pool")

    @property
    def n_blocks(self) -> int:
        """How many blocks the pool has.

        Examples
        --------
        >>> PoolConfig(size_mb=8, block_size=4096).n_blocks
        2048
        """
        return self.size_mb * MIB // self.block_size


DEFAULT_POOLS: Final = (
    PoolConfig(32, 4 * 1024),
    PoolConfig(128, 16 * 1024),
    PoolConfig(80, 64 * 1024),
    PoolConfig(40, 256 * 1024),
)


@dataclass(frozen=True)
class MemoryConfig:
    """Settings of a manager, checked at construction; immutable and picklable.

    Parameters
    ----------
    total_memory_mb : int
        The one budget for everything, in MiB.
    base_path : path-like
        The directory of the region files (``D01/region.mmap`` and so on); or a URL, such as
        ``s3://stories``, through fsspec: then files are read by way of the cache, and only read.
    pool_configs : sequence of PoolConfig or of (size_mb, block_size)
        The pools for what is being learned.
    core_slots : mapping of DimensionId, int or str to int, or sequence of such pairs
        What core dimensions may take in memory before they take headroom, in MiB; kept as pairs,
        ascending. Those that are not named have a part of the budget: ``docs/capacity.md``.
    warning_threshold, eviction_threshold, critical_threshold : float
        Shares of the budget, rising, in (0, 1].
    eviction_policy : {"sieve", "lru", "lfu"}
        How cold regions are chosen; `docs/eviction.md` compares them.
    simulation : {"auto", "never", "always"}
        Whether bundled content replaces core dimensions: where no core file exists, never,
        always.
    advice : {"willneed", "random", "sequential", "none"}
        What the system is told of a region's pages at load.
    load_mode : {"map", "copy"}
        Map a file, or read it into private memory, immune to what others do to the file.
    guard : {"none", "lease"}
        What keeps a mapped file's bytes as they are when other programs truncate or rewrite the
        file: nothing, so that reads of pages that are gone kill the process; or a read lease
        (Linux), at the price of a descriptor a file. A file that cannot be leased is copied.
    zero_on_reuse : bool
        Whether blocks that were used before are handed out zeroed.
    status : {"off", "auto"} or path-like
        Where other processes see what this one does (`jessymem top`): nowhere; in a file of the
        user's folder for such, or in this one. It is written twice a second, and gone at `close`.
    compress_cold : {"none", "zstd", "zstd:1" to "zstd:22"}
        Whether `fold` compresses the layers of a dimension that is cold: evicted, or among the
        first to be. Needs the extra ``zstd``; docs/compression.md tells what it costs.
    read_only : bool
        Refuse every write; make no directory and no lock file. Always so where `base_path` is a
        URL.
    huge_pages : {"never", "thp", "2MB", "1GB"}
        In which pages pools of large blocks, and files with ``load_mode="copy"``, are to be: small
        ones, those of 2 MiB that Linux makes by itself, or those that were set aside. What is
        refused falls back, with one record: ``docs/large_memory.md``.
    numa : {"none", "interleave", "local"}
        On which nodes of the machine memory is to be: as the system likes; on all in turns; near
        to the processor that asks, out of pools of its node. With one node it does nothing.

    Raises
    ------
    ConfigError
        Naming the field.

    Examples
    --------
    >>> config = MemoryConfig(total_memory_mb=64, base_path="data", pool_configs=[(8, 4096)])
    >>> config.pool_configs
    (PoolConfig(size_mb=8, block_size=4096),)
    >>> MemoryConfig(warning_threshold=0.9)
    Traceback (most recent call last):
        ...
    jessymem.errors.ConfigError: warning_threshold must be below eviction_threshold, ...
    """

    total_memory_mb: int = DEFAULT_TOTAL_MB
    base_path: str | os.PathLike[str] = Path("data/consciousness")
    pool_configs: Sequence[PoolConfig | tuple[int, int]] = DEFAULT_POOLS
    warning_threshold: float = 0.75
    eviction_threshold: float = 0.85
    critical_threshold: float = 0.95
    eviction_policy: str = "sieve"
    simulation: str = "auto"
    advice: str = "willneed"
    load_mode: str = "map"
    guard: str = "none"
    zero_on_reuse: bool = True
    read_only: bool = False
    status: str | os.PathLike[str] = "off"
    compress_cold: str = "none"
    huge_pages: str = "never"
    numa: str = "none"
    core_slots: Mapping[DimensionLike, int] | Sequence[tuple[DimensionLike, int]] = ()

    def __post_init__(self) -> None:
        """Check every field and bring it to one form: plain numbers, a path, pools."""
        total = self.total_memory_mb
        keep = partial(object.__setattr__, self)
        keep("total_memory_mb", _as_int("total_memory_mb", total, 1))
        if self.total_memory_mb > MAX_TOTAL_MB:
            raise _config_error("total_memory_mb", total, f"at most {MAX_TOTAL_MB:,}")
        base = osmem.without_scheme(self.base_path)
        is_elsewhere = osmem.is_url(base)
        if not is_elsewhere:
            keep("base_path", as_path("base_path", base))
        keep("pool_configs", _as_pools(self.pool_configs))
        keep("core_slots", _as_slots(self.core_slots))
        for name in _THRESHOLDS:
            keep(name, _as_share(name, getattr(self, name)))
        for lower, upper in pairwise(_THRESHOLDS):
            self._check_rising(lower, upper)
        _check_choice("eviction_policy", self.eviction_policy, EVICTION_POLICIES)
        _check_choice("simulation", self.simulation, SIMULATION_MODES)
        _check_choice("advice", self.advice, ADVICE_MODES)
        _check_choice("load_mode", self.load_mode, LOAD_MODES)
        _check_choice("guard", self.guard, GUARDS)
        if self.compress_cold != "none":
            from jessymem.zstd import as_compression

            if as_compression(self.compress_cold, "compress_cold") is None:
                raise _config_error("compress_cold", None, "'none' or 'zstd'")
        _check_choice("huge_pages", self.huge_pages, HUGE_PAGES)
        _check_choice("numa", self.numa, NUMA_POLICIES)
        for name in ("zero_on_reuse", "read_only"):
            keep(name, _as_bool(name, getattr(self, name)))
        if isinstance(self.status, str) and self.status.lower() in STATUS_MODES:
            _check_choice("status", self.status, STATUS_MODES)  # "Auto" is no file
        else:
            keep("status", os.fspath(as_path("status", self.status)))
        if is_elsewhere:
            keep("read_only", True)

    def _check_rising(self, lower: str, upper: str) -> None:
        """Raise ConfigError for thresholds in the wrong order; it names the one that was set."""
        low, high = getattr(self, lower), getattr(self, upper)
        if low < high:
            return
        if high == getattr(type(self), upper):  # left as it is by default
            raise _config_error(lower, low, f"below {upper}, which is {high:g}")
        raise _config_error(upper, high, f"above {lower}, which is {low:g}")

    @classmethod
    def of(
        cls, config: MemoryConfig | int, base_path: str | os.PathLike[str] | None = None
    ) -> MemoryConfig:
        """Take settings, or just the budget in MiB; `base_path` replaces theirs.

        Examples
        --------
        >>> MemoryConfig.of(64).total_memory_mb
        64
        >>> MemoryConfig.of(MemoryConfig(64, read_only=True), base_path="data").read_only
        True
        """
        if not isinstance(config, MemoryConfig):
            given = cls.base_path if base_path is None else base_path
            return cls(total_memory_mb=config, base_path=given)
        return config if base_path is None else replace(config, base_path=base_path)

    @property
    def taking(self) -> str:
        """How files are taken into memory: "map", "copy", or "lease", which is mapping guarded.

        Examples
        --------
        >>> MemoryConfig().taking, MemoryConfig(guard="lease").taking
        ('map', 'lease')
        >>> MemoryConfig(guard="lease", load_mode="copy").taking
        'copy'
        """
        return "lease" if self.guard == "lease" and self.load_mode == "map" else self.load_mode

    @property
    def thresholds(self) -> dict[str, float]:
        """The shares of the budget at which something happens, by name, rising.

        Examples
        --------
        >>> MemoryConfig().thresholds
        {'warning': 0.75, 'eviction': 0.85, 'critical': 0.95}
        """
        return {name.removesuffix("_threshold"): getattr(self, name) for name in _THRESHOLDS}

    @property
    def limit_bytes(self) -> int:
        """The budget in bytes.

        Examples
        --------
        >>> MemoryConfig(total_memory_mb=64).limit_bytes
        67108864
        """
        return self.total_memory_mb * MIB


def placement_of(config: MemoryConfig) -> jessymem.hints.Placement | None:
    """Return what memory is to be like; None: as the system gives it."""
    if (config.huge_pages, config.numa) == (HUGE_PAGES[0], NUMA_POLICIES[0]):
        return None
    from jessymem.placement import Placement

    return Placement(config.huge_pages, config.numa)


def as_path(field: str, value: Any) -> Path:
    """Return a path; raise ConfigError, naming the `field`, for what no file can be called."""
    try:
        return osmem.as_path(value)
    except TypeError:
        raise _config_error(field, value, "a path") from None
    except ValueError:  # the system cannot be told of such a name
        raise _config_error(field, value, "a path that a file can have") from None


def _as_pools(value: Any) -> tuple[PoolConfig, ...]:
    if not isinstance(value, Iterable) or isinstance(value, str | bytes):
        raise _config_error("pool_configs", value, "a sequence of PoolConfig")
    try:
        items = iter(value)
    except TypeError:  # an array of no axis
        raise _config_error("pool_configs", value, "a sequence of PoolConfig") from None
    pools: list[PoolConfig] = []
    for item in items:
        if len(pools) == N_POOL_IDS:
            raise _config_error("pool_configs", value, f"no more than {N_POOL_IDS} pools")
        if isinstance(item, PoolConfig):
            pools.append(item)
        elif _is_pair(item):
            pools.append(PoolConfig(*item))
        else:
            raise _config_error("pool_configs", item, "made of PoolConfig or (size_mb, block_size)")
    return tuple(pools)


def _as_slots(value: Any) -> tuple[tuple[DimensionId, int], ...]:
    expected = f"a mapping of core dimensions, 1 to {N_CORE_DIMENSIONS}, to MiB"
    items = value.items() if isinstance(value, Mapping) else value
    slots: dict[DimensionId, int] = {}
    try:
        if isinstance(items, str | bytes):
            raise TypeError
        for dimension, n_mb in items:
            number = as_dimension_id(dimension)
            size_mb = as_integer(n_mb, "core_slots")
            is_fine = number <= N_CORE_DIMENSIONS and 1 <= size_mb <= MAX_TOTAL_MB
            if not is_fine or number in slots:
                raise ValueError
            slots[number] = size_mb
    except (TypeError, ValueError):
        raise _config_error("core_slots", value, f"{expected}, each once, at least 1") from None
    return tuple(sorted(slots.items()))


def _is_pair(item: Any) -> bool:
    pair = item.tolist() if isinstance(item, np.ndarray | np.void) else item
    return isinstance(pair, tuple | list) and len(pair) == 2
