"""Every error that jessymem raises: it says what is wrong and where, also as attributes.

And `JessyWarning`, for what goes on all the same.
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any, Final, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

#: What keeps a module from being imported that is there: no descriptor left, or no memory.
_SHORT_OF: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_IMPORTERS: Final = "<frozen importlib"


#: So much of a caller's value is shown.
_MAX_SHOWN: Final = 500


def shown(value: object) -> str:
    """Return a caller's value as a message shows it: whatever it is, and not at any length."""
    try:
        text = repr(value)
    except Exception:  # an integer of too many digits, or what a class of theirs raises
        return f"what cannot be shown, of type {type(value).__name__}"
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 4]} ..."


class JessyMemoryError(Exception):
    """Base of every error of this package.

    Each keyword given to a constructor becomes an attribute, so that handlers need not parse
    messages.

    Parameters
    ----------
    message : str
        What went wrong, with the dimension or layer it concerns.
    **details
        The same facts as values.

    Examples
    --------
    >>> try:
    ...     manager.load_dimension("D15")
    ... except JessyMemoryError as error:
    ...     print(type(error).__name__, error.details)
    DuplicateDimension {'dimension': D15}
    """

    #: Whether a log record tells of it: none tells twice.
    is_recorded = False

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details = details
        for name, value in details.items():
            setattr(self, name, value)

    def __str__(self) -> str:
        """Return the message as written (KeyError would quote it)."""
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle with the details, so that errors travel between processes whole."""
        return _rebuild, (type(self), self.message, self.details)


def empty_frames(error: BaseException) -> None:
    """Empty the frames of a traceback, which keep memory alive for as long as the error is held.

    Those of its causes too; not of its context, which may be the caller's own.
    """
    emptied: list[BaseException] = []
    each: BaseException | None = error
    while each is not None and each not in emptied:
        # As `traceback.clear_frames` does, which would have to be imported: there may be no
        # descriptor left for that.
        step = each.__traceback__
        while step is not None:
            try:
                step.tb_frame.clear()
            except RuntimeError:  # it is running
                pass
            step = step.tb_next
        emptied.append(each)
        each = each.__cause__


def clears_frames(method: Callable[P, R]) -> Callable[P, R]:
    """Make the errors of a public method hold no region, however long someone keeps them.

    One that comes from importing what the method needs, where the system has no descriptor or no
    memory left, or where a library of numba's cannot be loaded, becomes a `RegionIOError`.
    """

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(*args, **kwargs)
        except BaseException as error:
            raise without_frames(error)  # noqa: B904  # it has its cause

    return call


def without_frames(error: BaseException) -> BaseException:
    """Return what `clears_frames` would raise, with the frames empty.

    For a method that returns what nobody holds: in one more function an interrupt would lose it.
    """
    failed = _as_failed_import(error)
    empty_frames(error)
    if failed is None:
        return error
    failed.__cause__ = error
    return failed


def _as_failed_import(error: BaseException) -> RegionIOError | None:
    """Return the error of a module that could not be imported for want of resources, as ours."""
    if not isinstance(error, OSError | ImportError) or isinstance(error, JessyMemoryError):
        return None
    step = error.__traceback__
    while step is not None and not step.tb_frame.f_code.co_filename.startswith(_IMPORTERS):
        step = step.tb_next
    if step is None:
        return None
    number = next((n for each in _chain(error) for n in _SHORT_OF if _tells_of(each, n)), None)
    name = getattr(error, "name", None) or getattr(error, "filename", None) or "a module"
    if number is not None:
        reason = OSError(number, os.strerror(number))
    elif isinstance(error, OSError) and error.errno is None:  # a module's own words: no library
        reason = OSError(str(error))
    else:
        return None
    return RegionIOError.from_os_error(reason, "import", name)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it came from."""
    seen: list[BaseException] = []
    each: BaseException | None = error
    while each is not None and each not in seen:
        yield each
        seen.append(each)
        each = each.__cause__ or each.__context__


def _tells_of(error: BaseException, number: int) -> bool:
    """Tell whether an error is of a kind; that of a library that cannot be loaded only says so."""
    return getattr(error, "errno", None) == number or os.strerror(number) in str(error)


def _rebuild(cls: type[JessyMemoryError], message: str, details: dict[str, Any]) -> Any:
    return cls(message, **details)


class AllocationFailed(JessyMemoryError, MemoryError):
    """Memory could not be had.

    Attributes
    ----------
    reason : str
        "pool_full", "fragmented", "no_pool" or "os_refused" (anonymous memory).
    requested : int
        Bytes asked for.

    Examples
    --------
    >>> try:
    ...     while True:
    ...         pool_id = allocator.add_pool(1, 4096)
    ... except AllocationFailed as error:
    ...     print(error.reason, error.requested)
    no_pool 1048576
    """

    reason: str
    requested: int


class LimitExceeded(JessyMemoryError, MemoryError):
    """The budget, or a core dimension's share of it, would be passed.

    Attributes
    ----------
    bound : str
        What would be passed: "budget", "critical_threshold" or "core_headroom".
    current : int
        Bytes that the whole budget counts now.
    limit : int
        Bytes that it may count, to the threshold where that is passed; of the core headroom, its
        own.
    requested : int
        Bytes that were asked for on top; of the core headroom, those that are to come from it.
    waiting : int
        Bytes, of those counted, that are retired and only still viewed.
    in_headroom : int or None
        Bytes that are taken of the core headroom now; None where that is not what is short.

    Examples
    --------
    >>> try:
    ...     allocator.allocate(2**30)
    ... except LimitExceeded as error:
    ...     print(error.current, error.limit, error.requested)
    0 15938355 1073741824
    """

    bound: str
    current: int
    limit: int
    requested: int
    waiting: int
    in_headroom: int | None = None


class LayerNotFound(JessyMemoryError, KeyError):
    """No such layer is loaded.

    Attributes
    ----------
    layer : LayerId or None
        None: it was looked up by its name.
    layers : tuple of LayerId
        All that a batch did not find, `layer` first; what is the number of no layer is an int.

    Examples
    --------
    >>> try:
    ...     manager.access_many(["L15-00", "L15-98", "L15-99"])
    ... except LayerNotFound as error:
    ...     print(error.layers)
    (L15-98, L15-99)
    """

    layer: Any
    layers: tuple[Any, ...]

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message, **details)
        if "layers" not in details:
            self.layers = (details["layer"],) if "layer" in details else ()


class AmbiguousName(JessyMemoryError, KeyError):
    """Several layers have the name that was to tell one.

    Attributes
    ----------
    name : str
    layers : tuple of LayerId
        All of them, ascending.

    Examples
    --------
    >>> layer = manager.create_proto_dimension("D20", "Fog.", name="monday")
    >>> try:
    ...     manager["monday"]
    ... except AmbiguousName as error:
    ...     print(error.name, error.layers)
    monday (L16-00, L20-00)
    """

    name: str
    layers: tuple[Any, ...]


class DimensionNotFound(JessyMemoryError, KeyError):
    """No region file for the dimension, or the dimension is not loaded.

    Attributes
    ----------
    dimension : DimensionId
    path : str or None
        Where the file was looked for.

    Examples
    --------
    >>> try:
    ...     manager.load_dimension("D77")
    ... except DimensionNotFound as error:
    ...     print(error.dimension, error.path)
    D77 ...region.mmap
    """

    dimension: Any
    path: str | None


class RegionNotFound(JessyMemoryError, KeyError):
    """A region id or generation that is gone.

    Attributes
    ----------
    dimension : DimensionId
    generation : int

    Examples
    --------
    >>> ref = manager.ref("L16-00")
    >>> manager.close()
    >>> written = RegionBuilder("D16", "diary").build_to_file("data/D16/region.mmap")
    >>> try:
    ...     ref.get()
    ... except RegionNotFound as error:
    ...     print(error.dimension, error.generation)
    D16 1
    """

    dimension: Any
    generation: int


class OutOfBounds(JessyMemoryError, IndexError):
    """A read beyond its region.

    Attributes
    ----------
    offset, size, region_size : int
        In bytes.

    Examples
    --------
    >>> try:
    ...     region.read_content(region.size - 10, 20)
    ... except OutOfBounds as error:
    ...     print(error.region_size - error.offset, error.size)
    10 20
    """

    offset: int
    size: int
    region_size: int


class DuplicateDimension(JessyMemoryError, ValueError):
    """The dimension is loaded already.

    Attributes
    ----------
    dimension : DimensionId

    Examples
    --------
    >>> manager.load_dimension("D15")
    Traceback (most recent call last):
        ...
    jessymem.errors.DuplicateDimension: D15 is loaded, from ...region.mmap
    """

    dimension: Any


class DuplicateLayer(JessyMemoryError, ValueError):
    """The layer number is taken already.

    Attributes
    ----------
    layer : LayerId or None
        None: all numbers of a dimension are, which `dimension` names then.

    Examples
    --------
    >>> manager.create_proto_dimension("D16", "Snow.", layer=7)
    Traceback (most recent call last):
        ...
    jessymem.errors.DuplicateLayer: L16-07 is there already: on disk
    """

    layer: Any


class ImmutableDimension(JessyMemoryError, PermissionError):
    """A write to what may not change: D09, D14, or anything under ``read_only``.

    Attributes
    ----------
    dimension : DimensionId

    Examples
    --------
    >>> manager.create_proto_dimension("D14", "Something else.")
    Traceback (most recent call last):
        ...
    jessymem.errors.ImmutableDimension: D14 is immutable: nothing may be learned in it
    """

    dimension: Any


class InvalidAccess(JessyMemoryError, RuntimeError):
    """A call that the state of things forbids: a closed manager, a handle that was freed.

    Examples
    --------
    >>> allocator.close()
    >>> allocator.allocate(100)
    Traceback (most recent call last):
        ...
    jessymem.errors.InvalidAccess: the allocator is closed: its blocks have been freed
    """


class RegionFormatError(JessyMemoryError, ValueError):
    """A file that breaks the region format.

    Attributes
    ----------
    field : str
        The field that breaks a rule.
    offset : int
        Where it lies, in bytes from the file's start.
    expected, got : object
        What the rule allows, and what is there.
    dimension : DimensionId
    path : str

    Examples
    --------
    >>> try:
    ...     MmapRegion.from_file("D15", "data/D16/region.mmap")
    ... except RegionFormatError as error:
    ...     print(error.field, error.offset, error.expected, error.got)
    dimension_id 0 15 16
    """

    field: str
    offset: int
    expected: Any
    got: Any
    dimension: Any
    path: str


class RegionIOError(JessyMemoryError, OSError):
    """The operating system refused a file operation.

    Attributes
    ----------
    operation : str
        "open", "map", "write", "sync", ...
    path : str
    errno : int
    dimension : DimensionId or None

    Examples
    --------
    >>> try:
    ...     RegionBuilder("D17", "plans").build_to_file(folder)
    ... except RegionIOError as error:
    ...     print(error.operation, error.path == str(folder))
    write True
    """

    operation: str
    path: str
    dimension: Any

    @classmethod
    def from_os_error(
        cls, error: OSError, operation: str, path: str | os.PathLike[str], dimension: Any = None
    ) -> RegionIOError:
        """Wrap `error`, keeping its number and naming operation, path and dimension.

        Examples
        --------
        >>> print(RegionIOError.from_os_error(OSError(28, "disk full"), "write", "a.mmap"))
        cannot write a.mmap: disk full (errno 28)
        """
        subject = f"{dimension}: " if dimension is not None else ""
        number = error.errno if error.errno is not None else 0
        reason = error.strerror or str(error)
        return cls(
            f"{subject}cannot {operation} {os.fspath(path)}: {reason} (errno {number})",
            operation=operation,
            path=os.fspath(path),
            errno=number,
            strerror=reason,
            filename=os.fspath(path),
            dimension=dimension,
        )


class RemoteError(RegionIOError):
    """A store did not answer, or not with what was asked for.

    Attributes
    ----------
    url : str
    start, stop : int or None
        Which bytes; None: no range was asked for.
    n_tries : int
        How often it was asked.

    Examples
    --------
    >>> try:
    ...     MmapRegion.from_url("memory://nowhere/region.mmap")
    ... except RemoteError as error:
    ...     print(error)
    cannot look at memory://nowhere/region.mmap: /nowhere/region.mmap (FileNotFoundError)
    """

    url: str
    start: int | None
    stop: int | None
    n_tries: int

    @classmethod
    def of(
        cls,
        operation: str,
        url: str,
        cause: BaseException,
        start: int | None = None,
        stop: int | None = None,
        n_tries: int = 1,
    ) -> RemoteError:
        """Tell of a cause, with URL and range.

        Examples
        --------
        >>> print(RemoteError.of("read", "s3://stories/a", TimeoutError("no answer"), 0, 4096))
        cannot read bytes 0 to 4,096 of s3://stories/a: no answer (TimeoutError)
        """
        where = url if start is None or stop is None else f"bytes {start:,} to {stop:,} of {url}"
        reason = str(cause) or type(cause).__name__
        tries = f", asked {n_tries} times" if n_tries > 1 else ""
        number = getattr(cause, "errno", None) or 0
        return cls(
            f"cannot {operation} {where}: {reason} ({type(cause).__name__}{tries})",
            operation=operation,
            path=url,
            url=url,
            start=start,
            stop=stop,
            n_tries=n_tries,
            errno=number,
            dimension=None,
        )


class ConfigError(JessyMemoryError, ValueError):
    """A setting that makes no sense.

    Attributes
    ----------
    field : str
    value : object

    Examples
    --------
    >>> try:
    ...     MemoryConfig(eviction_policy="random")
    ... except ConfigError as error:
    ...     print(error.field, error.value)
    eviction_policy random
    """

    field: str
    value: Any


class JessyWarning(UserWarning):
    """What a user should see without a log handler: the work goes on, but not as one may think.

    Layers that `close` drops, files that are skipped or ignored, simulated content in place of
    files. Issued through `warnings` the first time for each event and place; the log has all of
    them.

    Attributes
    ----------
    event : str
        As the log's record has it: "layers_lost", "load_failed", "simulation", ...
    place : str
        The file or the directory that it concerns.

    Examples
    --------
    >>> import warnings
    >>> layer = manager.create_proto_dimension("D16", "Not written anywhere.")
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     manager.close()
    >>> caught[0].message.event, caught[0].message.place == str(folder / "data")
    ('layers_lost', True)
    """

    event: str = ""
    place: str = ""
