"""`RegionFiles`: the files of one region, and how they change.

Beside the region file itself there may be deltas that follow it; a newer generation under a name of
its own, where a mapped file cannot be replaced (Windows); while somebody writes, a lock file and a
temporary file. Readers lock nothing: they take the highest valid generation that they find, and the
deltas that lead back to it.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Final, TypeVar

import xxhash

from jessymem import osmem, system_calls
from jessymem.computed_once import computed_once
from jessymem.core_dimensions import IMMUTABLE
from jessymem.errors import (
    AllocationFailed,
    DimensionNotFound,
    InvalidAccess,
    JessyMemoryError,
    RegionFormatError,
    RegionIOError,
    empty_frames,
)
from jessymem.ids import DimensionId
from jessymem.kernels import schema as s
from jessymem.logger import logger
from jessymem.named_tuples import NamedTuple
from jessymem.pieces import gather
from jessymem.regions import faults
from jessymem.regions.chain import RegionChain
from jessymem.regions.deltas import (
    Chain,
    ChainChanged,
    Delta,
    NoDelta,
    Peeked,
    choose,
    is_delta,
    peek_delta,
    peek_edition,
)
from jessymem.regions.layout import Edition
from jessymem.regions.region import MmapRegion

T = TypeVar("T")

#: What a dimension's region file is called, in the dimension's folder.
REGION_FILE: Final = "region.mmap"

#: A writer waits so long for another one before it gives up.
LOCK_TIMEOUT_SECONDS: Final = 60.0

# So many files' first bytes are remembered together, and what so many names say.
_N_PEEKED: Final = 4_096

_DELTA_NAME: Final = re.compile(r"\.d[1-9][0-9]*\.")

# So often files are looked at that others change meanwhile.
_N_LOOKS: Final = 1_000

# So often the directory is made again that others took away.
_LOCK_ATTEMPTS: Final = 10

# What a system says that does not let a mapped file be replaced, and others say for other reasons.
_NOT_REPLACED: Final = (errno.EACCES, errno.EPERM, errno.EBUSY, errno.EINVAL)

# File systems allow so many bytes to a name, of which what is made beside a file adds a few.
_MAX_NAME_BYTES: Final = 255
_N_ADDED_BYTES: Final = 40

# No listing of a directory: there is none, or it may be passed but not looked at.
_NO_DIRECTORY: Final = (errno.ENOENT, errno.ENOTDIR)
_NOT_LISTED: Final = (*_NO_DIRECTORY, errno.EACCES)


def held_at(path: Path, held: Sequence[MmapRegion], *, is_peeked: bool) -> MmapRegion | None:
    """Return the one of some regions that is the file at a path now; None: none is.

    Where editions are compared too, a file that was only touched is the same; what is copied holds
    no inode that would vouch for it.
    """
    found = osmem.identity_at(path) if held else None
    return None if found is None else _held_as(found, held, is_peeked=is_peeked)


def _held_as(
    found: osmem.FileIdentity, held: Iterable[MmapRegion], *, is_peeked: bool
) -> MmapRegion | None:
    """Return the one of some regions that is a certain file, as `held_at`."""
    for region in held:
        mine = region.identity
        if mine is None or mine[:3] != found[:3]:
            continue
        if mine == found or (is_peeked and region.state == s.REGION_MAPPED):
            return region
    return None


class _Name(NamedTuple):
    """What the name of a file says that lies beside a region file."""

    kind: str  # "d": of a delta; "g": of a generation; "": of what killed writers left
    generation: int
    path: Path


@lru_cache(_N_PEEKED)
def _read_name(file: str, short_name: str, name: str) -> _Name | None:
    """Tell what a name beside a region file says; None: it has nothing to do with that."""
    beside = Path(file)
    stem, suffix = re.escape(beside.stem), re.escape(beside.suffix)
    found = re.fullmatch(rf"{stem}\.([gd])([1-9][0-9]{{0,18}}){suffix}", name)
    if found:
        return _Name(found[1], int(found[2]), beside.with_name(name))
    if re.fullmatch(rf"\.{re.escape(short_name)}\.[0-9]+-[0-9a-f]{{8}}\.tmp", name):
        return _Name("", 0, beside.with_name(name))
    return None


class Alternate(NamedTuple):
    """A generation under a name of its own."""

    generation: int  # as the name says
    path: Path


class Beside(NamedTuple):
    """What has the name of a delta, and may be one."""

    generation: int  # as the name says
    path: Path
    identity: osmem.FileIdentity | None  # None: it is gone by now


class Listing(NamedTuple):
    """What lies beside a region file."""

    leftovers: list[Path]  # temporary files; under the lock nobody is writing them any more
    alternates: list[Alternate]  # the highest generation first
    deltas: list[Beside]  # of these too
    locks: list[Path]  # the lock file, of who is writing now or was killed at it
    ignored: list[tuple[Path, str]]  # what is called like a generation and may not count, and why
    ignored_deltas: list[tuple[Path, str]]
    taken: set[int]  # the generations of those that count, and of all deltas
    has_file: bool  # whether the region file is there


class Found(NamedTuple):
    """What there is of a region on disk."""

    chain: Chain
    replaced: tuple[Path, ...]  # deltas in whose place newer ones are
    stale: tuple[Path, ...]  # deltas of a file that is not there
    ignored: tuple[tuple[Path, str], ...]  # deltas that do not count, and why
    damaged: tuple[Alternate, ...]  # of these, those that may have been a part of the dimension
    is_clear: bool  # whether all that lies there is whole, and may be read: nothing else is missed


class RegionFiles:
    """The files of one region.

    Parameters
    ----------
    dimension : DimensionId
    target : pathlib.Path
        The region file, which may not exist yet, or a link to it.
    load_mode : {"map", "copy"}
        How the files are opened.
    record : callable
        Is given each record, to call it when it may be written; by default at once.
    peeked : dict, optional
        What is known of the first bytes of files, which is added to.
    """

    def __init__(
        self,
        dimension: DimensionId,
        target: Path,
        load_mode: str = "map",
        record: Callable[[Callable[[], None]], object] = lambda write: write(),
        peeked: Peeked | None = None,
    ) -> None:
        self.dimension = dimension
        self.target = target
        self.load_mode = load_mode
        self._record = record
        self._peeked: Peeked = {} if peeked is None else peeked
        #: The generation that the last `put` has given its name, also if it failed afterwards.
        self.written_generation: int | None = None
        #: Which file that is, as it was read back.
        self.written_identity: osmem.FileIdentity | None = None
        # What this write has found and made.
        self._alternates: list[Alternate] = []
        self._listing: Listing | None = None
        self._found: Found | None = None
        self._taken: set[int] = set()
        self._made: list[Path] = []
        self._adds = False
        self._is_locked: Callable[[], bool] | None = None
        self._is_name_durable = False
        # What was read of the last file that was copied, with the path and the file it was.
        self._copied: tuple[Path, osmem.FileIdentity | None, int] | None = None
        self._broken: dict[Path, str] = {}  # deltas that could not be opened whole, and why
        # What was opened during this write: to end a mapping gives up the GIL, so that waits.
        self._opened: list[MmapRegion] | None = None

    # -- looking -----------------------------------------------------------------------------------

    def __contains__(self, path: Path) -> bool:
        """Tell whether `path` is the region file, or names a generation beside it."""
        if path == self.target:
            return True
        if path.parent != self._file.parent:
            return False
        found = self._read(path.name)
        return found is not None and found.kind == "g"

    def exists(self) -> bool:
        """Tell whether the region has any file; if in doubt, yes."""
        try:
            osmem.identify(self.target)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return bool(self._list().alternates)
        except OSError:
            return True  # it cannot be looked at: opening it will say why
        return True

    def newest_path(self, *, tidy: bool) -> Path:
        """Return the file with the highest valid generation; `target` where there is no other.

        Deltas that follow it are left out; arguments and errors are those of `find`.
        """
        return self.find(tidy=tidy).chain.base

    def find(self, *, tidy: bool) -> Found:
        """Find the file with the highest valid generation, and the deltas that count beside it.

        Parameters
        ----------
        tidy : bool
            Whether to remove first what killed writers left, and to fold a newer generation back,
            unless somebody is writing now. What cannot be done is left for the next time.

        Raises
        ------
        RegionIOError
            If the directory cannot be listed, or a file not read for want of resources.
        """
        listing = self._listing or self._list()
        if tidy and (listing.leftovers or listing.alternates or listing.locks):
            with suppress(OSError), osmem.locked(self._lock, timeout=0):
                self._tidy()
            listing = self._list()
        for n_left in reversed(range(_N_LOOKS)):
            try:
                found = self._choose(listing)
                break
            except ChainChanged:
                if not n_left:
                    raise self._never_still() from None
                listing = self._list()
        for path, fault in listing.ignored:
            self._note_ignored("generation_ignored", path, fault)
        for path, fault in found.ignored:
            self._note_ignored("delta_ignored", path, fault)
        self._found = found
        return found

    def _note_ignored(self, event: str, path: Path, fault: str) -> None:
        facts = {"dimension": str(self.dimension), "path": str(path), "error": fault}
        extra = {"event": event, **facts}
        self._record(partial(logger.warning, "%s is ignored: %s", path, fault, extra=extra))
        logger.alert(event, path, f"{self.dimension}: {path} is ignored: {fault}")

    def _never_still(self) -> RegionIOError:
        """Return the error for files that others change whenever they are looked at."""
        error = OSError(errno.EAGAIN, "others are writing here all the time")
        return RegionIOError.from_os_error(error, "look at", self.target, self.dimension)

    def _choose(self, listing: Listing) -> Found:
        """Tell which of the files count; raise ChainChanged where one is gone meanwhile."""
        base = self._newest(listing.alternates)
        ignored = dict(listing.ignored_deltas)
        if not listing.deltas and not ignored:
            return Found(Chain(base), (), (), (), (), is_clear=not listing.ignored)
        edition, replaces, identity = None, 0, None
        try:
            identity = osmem.identify(base)
            edition, replaces = self._peek(peek_edition, base, identity)
        except (FileNotFoundError, NotADirectoryError):
            pass  # opening it will say so
        except OSError as error:
            raise RegionIOError.from_os_error(error, "read", base, self.dimension) from error
        peek = partial(peek_delta, self.dimension)
        whole: list[Delta] = []
        damaged: list[Alternate] = []
        is_clear = not listing.ignored and not ignored and edition is not None
        for generation, path, delta_identity in listing.deltas:
            if delta_identity is None:
                raise ChainChanged
            fault = self._broken.get(path)
            if fault is None:
                try:
                    whole.append(self._peek(peek, path, delta_identity, delta_identity, generation))
                    continue
                except FileNotFoundError:
                    raise ChainChanged from None
                except OSError as error:
                    raise RegionIOError.from_os_error(
                        error, "read", path, self.dimension
                    ) from error
                except RegionFormatError as error:
                    fault = error.message
                except NoDelta as error:
                    ignored[path] = str(error)
                    continue
            damaged.append(Alternate(generation, path))
            ignored[path] = fault
        if self.dimension in IMMUTABLE:
            ignored.update((delta.path, f"{self.dimension} never changes") for delta in whole)
            return Found(Chain(base), (), (), tuple(ignored.items()), (), is_clear=False)
        choice = choose(edition, replaces, whole)
        ignored.update((delta.path, "others lead further") for delta in choice.forked)
        ignored.update((delta.path, "what it follows is not there") for delta in choice.stale)
        return Found(
            Chain(base, edition, choice.chosen, identity),
            tuple(delta.path for delta in choice.replaced),
            tuple(delta.path for delta in choice.stale),
            tuple(ignored.items()),
            tuple(damaged),
            is_clear and not damaged,
        )

    def _peek(
        self, read: Callable[..., T], path: Path, identity: osmem.FileIdentity, *facts: object
    ) -> T:
        """Return what is read of a file's first bytes, once for each file."""
        known = self._peeked.get(path)
        if known is None or known[0] != identity:
            if len(self._peeked) >= _N_PEEKED:
                self._peeked.clear()
            known = self._peeked[path] = identity, read(path, *facts)
        found: T = known[1]
        return found

    def use_newest(self, use: Callable[[Chain], T], *, tidy: bool) -> T:
        """Return what `use` makes of the files that count now; `tidy` as for `find`.

        Raises
        ------
        RegionIOError
            If the directory cannot be listed, or others never leave it as it is.
        DimensionNotFound, Exception
            What `use` raises; where files were replaced meanwhile, not before those that are there
            now were tried too.
        """
        for _ in range(_N_LOOKS):
            chain = self.find(tidy=tidy).chain
            try:
                return use(chain)
            except ChainChanged:
                pass
            except DimensionNotFound as error:
                if chain.base == self.target and not chain.deltas:
                    raise
                empty_frames(error)
            self._listing = None  # it lists what is there no more
        raise self._never_still()

    def open_newest(
        self,
        held: Sequence[MmapRegion] = (),
        take: Callable[[Path], MmapRegion] | None = None,
        known: MmapRegion | RegionChain | None = None,
    ) -> MmapRegion | RegionChain:
        """Open the files that count now, whatever the budget says.

        Parameters
        ----------
        held : sequence of MmapRegion
            Those that are open already.
        take : callable, optional
            Opens one of the others; by default `open`.
        known : MmapRegion, RegionChain or None
            What those that are held are together, if they are all.

        Raises
        ------
        DimensionNotFound, RegionIOError, RegionFormatError
            If they cannot be opened.
        """

        def use(chain: Chain) -> MmapRegion | RegionChain:
            return self.open_chain(chain, take or self.open, known, held)

        return self.use_newest(use, tidy=False)

    def open_chain(
        self,
        chain: Chain,
        take: Callable[[Path], MmapRegion],
        known: MmapRegion | RegionChain | None = None,
        held: Sequence[MmapRegion] = (),
    ) -> MmapRegion | RegionChain:
        """Open the files of a chain, each by `take`, and lay them over each other.

        Those that are `held` already are not opened again, and `known` is returned where they are
        just its members.

        Raises
        ------
        ChainChanged
            If others have changed them since they were found, or one turned out to be broken: they
            are to be found again, through this object.
        Exception
            What `take` raises for the region file.
        """
        if not chain.deltas:
            return held_at(chain.base, held, is_peeked=False) or take(chain.base)
        same = {each.identity: each for each in held}

        def find(path: Path, identity: osmem.FileIdentity | None) -> MmapRegion:
            if identity is None:
                return take(path)
            return same.get(identity) or _held_as(identity, held, is_peeked=True) or take(path)

        base = find(chain.base, chain.base_identity)
        if base.layout.is_extended and base.edition != chain.base_edition:
            raise ChainChanged
        regions = [base]
        for delta in chain.deltas:
            try:
                region = find(delta.path, delta.identity)
            except DimensionNotFound as error:
                empty_frames(error)
                raise ChainChanged from None
            except RegionFormatError as error:
                empty_frames(error)
                self._broken[delta.path] = error.message
                raise ChainChanged from None
            if not region.layout.is_extended:
                self._broken[delta.path] = "its checksums do not hold"
                raise ChainChanged
            if (region.edition, region.layout.follows) != (delta.edition, delta.follows):
                raise ChainChanged
            regions.append(region)
        if known is not None and known.members == tuple(regions):
            return known
        return RegionChain(regions)

    def open_edition(self, edition: Edition) -> MmapRegion:
        """Map the one file that is of an edition, a delta too; if none is, the newest.

        Raises
        ------
        DimensionNotFound, RegionIOError, RegionFormatError
            If none can be opened.
        """
        newest: MmapRegion | None = None
        tried: dict[Path, JessyMemoryError | None] = {}
        while path := next((path for path in self._paths(edition) if path not in tried), None):
            tried[path] = None
            try:
                region = self.open(path)
            except (DimensionNotFound, RegionFormatError) as error:
                empty_frames(error)
                tried[path] = error
                if isinstance(error, DimensionNotFound) and path != self.target:
                    tried.pop(self.target, None)  # folded back: there it may be now
                continue
            if region.edition == edition:
                return region
            if newest is None or region.edition > newest.edition:
                newest = region
        if newest is None:
            raise next(error for error in tried.values() if error is not None)
        return newest

    def _paths(self, edition: Edition) -> Iterator[Path]:
        """Yield the region file, and then what lies beside it, which is looked for only then."""
        yield self.target
        listing = self._list()
        for alternate in listing.alternates:
            yield alternate.path
        for delta in listing.deltas:
            if delta.generation == edition.generation:
                yield delta.path

    def next_generation(self, above: int = 0, present: int | None = None) -> int:
        """Return the generation of the next write; 1 where nothing readable precedes it.

        Within `writing` only.

        Parameters
        ----------
        above : int
            A generation that is known of a file that may be gone: the next one is higher.
        present : int or None
            That of the file that is there, where it is known already.

        Raises
        ------
        RegionIOError
            If the present file cannot be read: no reason to go back to 1.
        RegionFormatError
            If the present one is the highest that there is.
        """
        path = self._newest(self._alternates)
        present = max(self._generation_of(path) if present is None else present, above)
        # Above every name that is taken, also by a file that is broken; or if there is no number
        # above, one that nobody has.
        taken = self._taken
        following = max(present, 0, *taken) + 1
        if following > s.MAX_GENERATION:
            following = max(present, 0) + 1
            while following in taken:
                following += 1
        if following > s.MAX_GENERATION:
            raise faults.broken_extension(
                faults.Source(self.dimension, str(path)),
                "generation",
                f"< {s.MAX_GENERATION}, so that another can follow",
                present,
            )
        return following

    # -- writing -----------------------------------------------------------------------------------

    @contextmanager
    def writing(
        self, timeout: float = LOCK_TIMEOUT_SECONDS, *, adds: bool = False
    ) -> Iterator[None]:
        """Keep every other writer out, of this process and of others, after tidying up.

        Temporary files are made and removed within only; so one that is found here was left by a
        writer that was killed. Who `adds` to what there is has to know all of it: a directory that
        may not be listed is an error.

        Raises
        ------
        RegionIOError
            If the directory cannot be made, or the lock not be had.
        InvalidAccess
            If this thread is within `writing` already, and came here from a signal handler, a
            finalizer or a handler of records.
        """
        self._made = []
        self._opened = None if os.name == "nt" else []  # there a mapped file cannot be replaced
        osmem.prepare_writing(self.target.parent)
        with self._as_region_error("follow the link"):
            osmem.prepare_writing(self._file.parent)
        try:
            with self._locked(timeout):
                self._adds = adds
                if not self._tidy().has_file:  # it would vouch for its directory
                    self._sync_name_of_directory()
                yield
        except BaseException:
            with suppress(OSError):  # the error that led here says more
                for directory in reversed(self._made):
                    directory.rmdir()
            raise
        finally:
            self._adds = False
            self._is_locked = None
            self._listing = self._found = None
            self._opened = None

    def put(self, pieces: Iterable[Any], generation: int, *, replaces: bool = True) -> Path:
        """Replace the region file by `pieces`, durably: old bytes or new ones, never a mixture.

        Within `writing` only. The bytes are written beside, synced, read back, renamed into place,
        and the directory is synced; its own name was when it was made. Without `replaces` it is an
        error (EEXIST) where a region file is there by then: another writer has taken no notice of
        the lock, or others have removed it.

        Returns
        -------
        pathlib.Path
            `target`; or where that could not be replaced, the name beside it that now counts.

        Raises
        ------
        RegionIOError
            Up to the renaming nothing has changed, and the temporary file is gone. If a directory
            cannot be synced, the new file is in place, but may not outlive a power failure.
        """
        instead = self._beside(generation) if replaces else None
        path = self._put_at(self._file, pieces, generation, instead, replaces=replaces)
        self._remove_alternates(generation)
        return self.target if path == self._file else path

    def put_delta(self, pieces: Iterable[Any], generation: int) -> Path:
        """Make a delta of `pieces` beside the region file, durably; otherwise as `put`.

        It never replaces another one.
        """
        name = f"{self._file.stem}.d{generation}{self._file.suffix}"
        return self._put_at(self._file.with_name(name), pieces, generation, replaces=False)

    def check_base(self) -> None:
        """Raise InvalidAccess where the region file is a delta itself; within `writing` only."""
        if not _DELTA_NAME.search(self._file.name):
            return
        with suppress(OSError):
            if is_delta(self.target):
                raise InvalidAccess(
                    f"{self.dimension}: {self.target} is a delta, and written only with the file "
                    "that it follows",
                    dimension=self.dimension,
                )

    def check_whole(self) -> None:
        """Raise RegionFormatError where a damaged delta may have been the end of the dimension.

        What is written past it would hide for good what it holds, and those that follow it. Within
        `writing` only.
        """
        found = self._found
        if found is None:
            return
        last = found.chain.deltas[-1].edition if found.chain.deltas else found.chain.base_edition
        for generation, path in found.damaged:
            if last is None or generation > last.generation:
                fault = dict(found.ignored)[path]
                raise RegionFormatError(
                    f"{self.dimension}: {path} is damaged ({fault}): nothing is added beside it "
                    "until it is put right, or taken away",
                    field="delta",
                    offset=0,
                    expected="a delta that is whole",
                    got=path.name,
                    dimension=self.dimension,
                    path=str(path),
                )

    def still_has(self, before: Sequence[MmapRegion]) -> bool:
        """Tell whether the files that were found last are still there, as far as these go.

        Within `writing` only: what was written after them is nothing without them.

        Parameters
        ----------
        before : sequence of MmapRegion
            What they are opened as, the region file first.
        """
        found = self._found
        if found is None or len(found.chain.paths) < len(before):
            return False
        paths = found.chain.paths[: len(before)]
        here = list(map(osmem.identity_at, paths[:1]))
        if len(paths) > 1:  # deltas, which lie together
            here += osmem.identities_at(paths[1:])
        return all(map(self._is_still, paths, here, before))

    def _is_still(self, path: Path, here: osmem.FileIdentity | None, region: MmapRegion) -> bool:
        """Tell whether a file is the one that was opened; for made-up inodes editions tell."""
        if here is not None and _held_as(here, [region], is_peeked=True) is not None:
            return True
        try:
            return self.open(path).edition == region.edition  # and whole, as far as it is mapped
        except JessyMemoryError as error:
            empty_frames(error)
            return False

    def take_back(self, path: Path) -> None:
        """Remove a delta that was just written and leads nowhere; within `writing` only."""
        with suppress(OSError):  # then it is ignored, as any other that leads nowhere
            osmem.remove_file(path)
        self.written_generation = self._listing = None

    def remove_deltas(self, kept: Collection[Edition] = ()) -> None:
        """Remove the deltas that no longer count after a write, all that were found but the `kept`.

        Which those are their editions tell: they may have been opened under other names. Within
        `writing` only. Where something is broken, or may not be read, what does not lead back to
        the region file may follow that, and stays.
        """
        found = self._found
        if found is None or not self._is_name_durable:
            return
        counted = [delta.path for delta in found.chain.deltas if delta.edition not in kept]
        for path in (*counted, *found.replaced, *(found.stale if found.is_clear else ())):
            with suppress(OSError):  # the write is done, whatever they say
                osmem.remove_file(path)

    def is_owned(self) -> bool:
        """Tell whether the region file is this user's: so will be what is written beside it."""
        return osmem.is_owned(self.target)

    # -- inside ------------------------------------------------------------------------------------

    @contextmanager
    def _locked(self, timeout: float) -> Iterator[None]:
        """Make the directory and hold the lock in it.

        A writer that made the directory and failed takes it away again, also from under who waits.
        """
        directory = self._file.parent
        with ExitStack() as lock:
            for n_left in reversed(range(_LOCK_ATTEMPTS)):
                try:
                    with self._as_region_error("lock"):
                        self._is_locked = lock.enter_context(osmem.locked(self._lock, timeout))
                    break
                except RegionIOError as error:
                    if error.errno == errno.EDEADLK:
                        raise InvalidAccess(
                            f"{self.dimension}: this thread is in the middle of writing "
                            f"{self.target}"
                        ) from None
                    if error.errno not in _NO_DIRECTORY or not n_left:
                        raise
                    empty_frames(error)
                with self._as_region_error("make the directory of"):
                    self._made += osmem.make_directory(directory)
            yield

    def _sync_name_of_directory(self) -> None:
        with self._as_region_error("sync the directories above"):
            refusal = osmem.sync_name(self._file.parent, made_here=bool(self._made))
        if refusal is not None:
            system_calls.tell("sync directory", self._file.parent, refusal)

    def _put_at(
        self,
        path: Path,
        pieces: Iterable[Any],
        generation: int,
        instead: Path | None = None,
        *,
        replaces: bool,
    ) -> Path:
        """Make a file of `pieces` under the name `path`, durably; return the name that it got.

        That is `instead`, if given, where the system does not let a mapped file be replaced.
        Without `replaces` nobody may have the name. Raises as `put`.
        """
        pieces = gather(pieces)
        # Two writers at once are those only who lost the lock; each has a time of its own.
        moment = time.perf_counter_ns() // 64 % 2**32
        name = f".{self._short_name}.{os.getpid()}-{moment:08x}.tmp"
        temporary = self._file.with_name(name)
        self.written_generation = self.written_identity = None
        try:
            written = self._write(temporary, pieces)
            give = osmem.replace_file if replaces else osmem.rename_new
            path = self._rename(temporary, path, instead, written, pieces, give)
            self.written_generation, self.written_identity = generation, written
        except BaseException:
            # Another writer may have that number by now.
            self._taken.add(generation)
            self._listing = None
            with suppress(OSError):  # the error that led here says more
                osmem.remove_file(temporary)
            raise
        self._made = []  # in use from here on
        self._is_name_durable, self._listing = False, None
        with self._as_region_error("sync the directory of"):
            self._is_name_durable = osmem.sync_directory(self._file.parent)
        return path

    def _write(self, temporary: Path, pieces: Iterable[Any]) -> osmem.FileIdentity:
        """Write, sync and read back a temporary file; return which file that was."""
        with self._as_region_error("create"):
            file = osmem.create_file(temporary)
        with self._as_region_error("close"):
            try:
                with self._as_region_error("write"):
                    osmem.keep_attributes(self.target, file)
                    osmem.write_pieces(file, temporary, pieces)
                with self._as_region_error("sync"):
                    osmem.sync_file(file, temporary)
                written = osmem.identity_of(file, temporary)
            finally:
                osmem.close_file(file)
        with self._as_region_error("read back"):
            if not osmem.holds(temporary, pieces):
                raise OSError(errno.EIO, "what was read back is not what was written")
        return written

    def _rename(
        self,
        temporary: Path,
        path: Path,
        instead: Path | None,
        written: osmem.FileIdentity,
        pieces: Iterable[Any],
        give: Callable[[Path, Path], None],
    ) -> Path:
        """Give the written file its name; return which that is, `path` or `instead`.

        It is not believed that it has the name before the name leads to it: others may have removed
        or replaced the temporary file.
        """
        with self._as_region_error("rename"):
            if self._is_locked is not None and not self._is_locked():
                raise OSError(
                    errno.ENOLCK, f"{self._lock.name} was removed, and others may be writing"
                )
            try:
                give(temporary, path)
            except OSError as error:
                # A network file system may tell of a rename that was done as failed, when it has
                # tried it again.
                if self._has_arrived(path, written, pieces):
                    return path
                is_mapped = error.errno in _NOT_REPLACED and osmem.may_replace(path)
                if instead is None or not is_mapped:
                    raise
                path = instead
                try:
                    osmem.replace_file(temporary, path)
                except OSError:
                    raise error from None
            if not self._has_arrived(path, written, pieces):
                raise OSError(errno.EIO, "another file has got the name")
        return path

    @staticmethod
    def _has_arrived(path: Path, written: osmem.FileIdentity, pieces: Iterable[Any]) -> bool:
        """Tell whether the file that was written has a name: itself, not a link to it.

        Some file systems make up inode numbers, or times, anew: there the bytes tell.
        """
        found = osmem.identity_named(path)
        if found is None or found == written:
            return found is not None
        return found.n_bytes == written.n_bytes and osmem.holds(path, pieces)

    def _tidy(self) -> Listing:
        """Remove leftovers, fold back what can be; under the lock. Return what there was."""
        self._listing = listing = self._list()
        leftovers, self._alternates, self._taken = (
            listing.leftovers,
            listing.alternates,
            listing.taken,
        )
        for path in leftovers:
            with suppress(OSError):
                osmem.remove_file(path)
        if self._alternates:
            self._listing = None
            newest = self._newest(self._alternates)
            generation = self._generation_of(newest)
            with suppress(OSError):  # mapped by somebody
                if newest != self.target:
                    osmem.replace_file(newest, self._file)
                # Also where it had its name already: who gave it that may not have synced it.
                osmem.sync_directory(self._file.parent)
                self._remove_alternates(generation)
        return listing

    def _remove_alternates(self, generation: int) -> None:
        """Remove those that do not count beside `generation`; one that is mapped may have to stay.

        A file that is not what its name says is broken, and not ours to remove.
        """
        for alternate in list(self._alternates):
            if alternate.generation > generation:
                continue
            with suppress(OSError, AllocationFailed):  # the write is done, whatever they say
                if self._generation_beside(alternate) == alternate.generation:
                    osmem.remove_file(alternate.path)
                    self._alternates.remove(alternate)

    def _fault_of(self, beside: Path) -> str | None:
        """Say why a generation beside may not count; None: it may.

        Where others may make names in the directory but not replace the region file, a newer
        generation of theirs would do just that.
        """
        try:
            return osmem.fault_of_substitute(self.target, beside)
        except OSError as error:
            return str(error)

    def _add_deltas(self, listing: Listing, names: list[_Name]) -> None:
        """Put what has the name of a delta into a listing.

        Without one that counts the chain would be another one: an error is no reason to ignore it.
        """
        with self._as_region_error("look at what lies beside"):
            found = osmem.look_beside(self.target, [name.path for name in names])
        for (_, generation, beside), identity in zip(names, found, strict=True):
            if isinstance(identity, str):
                listing.ignored_deltas.append((beside, identity))
            else:
                listing.deltas.append(Beside(generation, beside, identity))

    def _beside(self, generation: int) -> Path:
        return self._file.with_name(f"{self._file.stem}.g{generation}{self._file.suffix}")

    @computed_once
    def _file(self) -> Path:
        """Where `target` leads to: what is replaced, and beside which others are made."""
        with self._as_region_error("follow the link"):
            return osmem.behind_links(self.target)

    @computed_once
    def _lock(self) -> Path:
        return self._file.with_name(f".{self._short_name}.lock")

    @computed_once
    def _short_name(self) -> str:
        """Name of the file, or where a longer one would not fit, one made from it."""
        encoded = os.fsencode(self._file.name)
        if len(encoded) <= _MAX_NAME_BYTES - _N_ADDED_BYTES:
            return self._file.name
        return f"region-{xxhash.xxh3_128_hexdigest(encoded)}"

    def open(self, path: Path, load_mode: str | None = None) -> MmapRegion:
        """Map or copy one of the files, whatever the budget says; see `MmapRegion.from_file`."""
        mode = load_mode or self.load_mode
        region = MmapRegion.from_file(self.dimension, path, load_mode=mode)
        if mode == "copy":
            self._copied = path, region.identity, region.generation
        if self._opened is not None:
            self._opened.append(region)
        return region

    def _generation_of(self, path: Path) -> int:
        """Return a file's generation, -1 where there is none or it breaks the format."""
        if self._copied is not None and self._copied[:2] == (path, osmem.identity_at(path)):
            return self._copied[2]  # a copy is not made twice
        if self._opened:
            found = osmem.identity_at(path)
            for region in self._opened:
                if region.path == path and region.identity == found:
                    return region.generation
        try:
            return self.open(path).generation
        except (DimensionNotFound, RegionFormatError):
            return -1

    def _generation_beside(self, alternate: Alternate) -> int:
        """Return the generation of a file beside, as its name says; -1 where it is another one.

        A delta under such a name stands for no region file, whatever its generation.
        """
        generation = self._generation_of(alternate.path)
        fault = None
        if generation >= 0 and generation != alternate.generation:
            fault = f"its generation is {generation}"
        else:
            with suppress(OSError):
                fault = "it is a delta" if is_delta(alternate.path) else None
        if fault is None:
            return generation
        self._note_ignored("generation_ignored", alternate.path, fault)
        return -1

    def _newest(self, alternates: list[Alternate]) -> Path:
        if not alternates:
            return self.target
        best, path = self._generation_of(self.target), self.target
        for alternate in alternates:
            if alternate.generation > best:
                generation = self._generation_beside(alternate)
                if generation > best:
                    best, path = generation, alternate.path
        return path

    def _list(self) -> Listing:
        """Look what lies beside the region file; a writer has to know."""
        with self._as_region_error("list the directory of"):
            try:
                names = osmem.list_directory(self._file.parent)
            except OSError as error:
                may_be_unknown = error.errno in _NOT_LISTED and not self._adds
                if not may_be_unknown and error.errno not in _NO_DIRECTORY:
                    raise
                names = []
        own, lock = self._file.name, self._lock.name
        beginnings = f"{self._file.stem}.", f".{self._short_name}."
        found = Listing([], [], [], [], [], [], set(), own in names)
        deltas: list[_Name] = []
        for name in names:
            if name == own or not name.startswith(beginnings):  # as of many in a common directory
                continue
            if name == lock:
                found.locks.append(self._lock)
                continue
            says = self._read(name)
            if says is None:
                continue
            kind, generation, beside = says
            if kind == "d":
                found.taken.add(generation)
                deltas.append(says)
            elif not kind:
                found.leftovers.append(beside)
            elif (fault := self._fault_of(beside)) is None:
                found.taken.add(generation)
                found.alternates.append(Alternate(generation, beside))
            else:
                found.ignored.append((beside, fault))
        if deltas:
            self._add_deltas(found, deltas)
        found.alternates.sort(reverse=True)
        found.deltas.sort(reverse=True)
        return found

    def _read(self, name: str) -> _Name | None:
        """Tell what a name beside the region file says."""
        return _read_name(os.fspath(self._file), self._short_name, name)

    def _as_region_error(self, operation: str) -> _RegionErrors:
        return _RegionErrors(self, operation)


class _RegionErrors:
    """Raises a RegionIOError in the place of each other OSError."""

    __slots__ = ("_files", "_operation")

    def __init__(self, files: RegionFiles, operation: str) -> None:
        self._files = files
        self._operation = operation

    def __enter__(self) -> None:
        """Nothing to do."""

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """Raise another error where there was one."""
        if not isinstance(error, OSError) or isinstance(error, RegionIOError):
            return
        files, operation = self._files, self._operation
        if isinstance(error, osmem.NameNotSynced):
            operation = "sync the directories above"
        raise RegionIOError.from_os_error(
            error, operation, files.target, files.dimension
        ) from error
