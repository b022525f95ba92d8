"""A user's own kernel, compiled and applied to layer after layer.

The arrays that it is given own nothing: what is scanned is held by the scan, which outlasts every
call. So they cost no reference counts, and a kernel that raises leaks nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import closing
from importlib import import_module
from types import BuiltinFunctionType
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from jessymem.errors import shown
from jessymem.ids import LayerId
from jessymem.kernels import _jit, atomics, memory
from jessymem.kernels import schema as s
from jessymem.scanning.spans import Job, Spans
from jessymem.scanning.workers import Workers

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

#: Compiled kernels that are remembered, for calls with the same function again.
_N_REMEMBERED: Final = 64

#: Jobs are small: how long a kernel takes for a byte is not known.
_JOBS_PER_WORKER: Final = 32
_JOB_BYTES: Final = (4 * 1024, 8 * 2**20)

#: What compiled code with ``parallel=True`` calls.
_START_OF_THREADS: Final = "numba_parallel_for"

#: What numba puts around the body of a loop.
_WRAPPER: Final = "parallelgufuncwrapper"

_ADDRESS: Final = s.word_of(s.SPAN, "address") * s.WORD_BYTES
_N_BYTES: Final = s.word_of(s.SPAN, "n_bytes") * s.WORD_BYTES
_ROW_ADDRESS: Final = s.word_of(s.SPAN, "row_address") * s.WORD_BYTES
_SPAN_BYTES: Final = s.SPAN.itemsize


class Applied:
    """A user's kernel, ready to be called for layers.

    Parameters
    ----------
    kernel : callable
    dtype : data type
        Of what it returns.

    Raises
    ------
    TypeError
        If it is no function, cannot be compiled, or returns what does not cast to `dtype`.
    ValueError
        If it, or what it calls, was compiled with ``parallel=True``.
    """

    def __init__(self, kernel: Callable[..., Any], dtype: DTypeLike) -> None:
        if not callable(kernel):
            raise TypeError(f"a kernel is a function, not {shown(kernel)}")
        if isinstance(kernel, type | BuiltinFunctionType | np.ufunc):
            raise TypeError(
                f"a kernel is a function written in Python, which is compiled: {shown(kernel)} is"
                " not; call it in one, as in `def kernel(content, row): return len(content)`"
            )
        self.dtype = np.dtype(dtype)
        if self.dtype.kind not in "biufc" or not self.dtype.isnative:
            raise TypeError(f"dtype is a native boolean or number, not {self.dtype}")
        self._name = name_of(kernel)
        self._drive = make_driver(kernel, self.dtype)

    def to(self, spans: Spans, workers: Workers) -> NDArray[Any]:
        """Return what the kernel makes of each span, in order."""
        values = np.zeros(len(spans.rows), self.dtype)
        jobs = spans.jobs(_JOBS_PER_WORKER * workers.n_workers, _JOB_BYTES, is_whole=True)
        work = functools.partial(self._apply, spans, values, workers.stop)
        with closing(workers.results(work, jobs, spans.n_bytes, is_awaited=False)) as results:
            for _ in results:
                pass
        return values

    def _apply(self, spans: Spans, values: NDArray[Any], stop: NDArray[np.int64], job: Job) -> None:
        at = job.span
        for plain, part in spans.plain(job):
            # Where nothing is compressed these are the spans and the job themselves.
            self._apply_plainly(plain, values[at - part.span :], stop, part)
            at += part.last_span + (part.last_end > 0) - part.span
            del plain  # before the next is inflated

    def _apply_plainly(
        self, spans: Spans, values: NDArray[Any], stop: NDArray[np.int64], job: Job
    ) -> None:
        row = np.zeros(1, s.LAYER)
        bounds = np.array([job.span, job.last_span])
        try:
            self._drive(
                spans.rows.ctypes.data,
                values.ctypes.data,
                row.ctypes.data,
                bounds.ctypes.data,
                stop.ctypes.data,
            )
        except Exception as error:
            layer = LayerId.from_packed(int(spans.rows["layer"][bounds[0]]))
            error.add_note(f"raised by the kernel {self._name} for layer {layer}")
            raise


@functools.lru_cache(maxsize=_N_REMEMBERED)
def make_driver(kernel: Callable[..., Any], dtype: np.dtype[Any]) -> Callable[..., None]:
    """Return what calls a kernel for spans, compiled unless compilation is disabled.

    It takes addresses: of SPAN rows, of the values to write, of one LAYER row to be used, of two
    words (the first row to be done, which it moves on, and the last), and of a word that stops it.
    """
    if _jit.is_disabled():
        return functools.partial(_drive_plain, kernel, dtype)
    _jit.register_overloads()
    compiled = _compile(kernel, dtype)

    def drive(spans: Any, values: Any, row: Any, bounds: Any, stop: Any) -> None:
        last = memory.load_i64(bounds + s.WORD_BYTES)
        for i in range(memory.load_i64(bounds), last):
            if atomics.load(stop, 0) != 0:
                return
            memory.store_i64(bounds, i)
            span = spans + i * _SPAN_BYTES
            content = memory.array_at(
                None,
                memory.load_i64(span + _ADDRESS),
                memory.load_i64(span + _N_BYTES),
                np.uint8,
            )
            memory.copy_bytes(row, memory.load_i64(span + _ROW_ADDRESS), s.LAYER_BYTES)
            layer_row = memory.array_at(None, row, 1, s.LAYER)[0]
            memory.store_item(values, i, compiled(content, layer_row), dtype)

    njit = import_module("numba").njit
    driver: Any = njit("(int64, int64, int64, int64, int64)", nogil=True)(drive)
    (result,) = driver.overloads.values()
    guilty = _find_parallel(result.library)
    if guilty is not None:
        raise _is_parallel(kernel, guilty)
    called: Callable[..., None] = driver
    return called


def _compile(kernel: Callable[..., Any], dtype: np.dtype[Any]) -> Any:
    """Return a kernel as numba takes it, compiled for a layer's bytes and row."""
    numba = import_module("numba")
    dispatcher = kernel
    if not isinstance(kernel, numba.core.dispatcher.Dispatcher):
        dispatcher = numba.njit(nogil=True)(kernel)
    elif kernel.targetoptions.get("parallel"):
        raise _is_parallel(kernel, name_of(kernel))
    types = numba.core.types
    wanted = "a layer's bytes (a read-only array of uint8) and its row"
    taken = (types.Array(types.uint8, 1, "C", readonly=True), numba.from_dtype(s.LAYER))
    context = dispatcher.targetdescr.typing_context  # type: ignore[attr-defined]
    try:
        signature = types.Dispatcher(dispatcher).get_call_type(context, taken, {})
    except Exception as error:  # the compiler's own, and whatever it runs into
        n_taken = dispatcher.py_func.__code__.co_argcount  # type: ignore[attr-defined]
        if n_taken != len(taken):
            raise TypeError(
                f"the kernel {name_of(kernel)} does not compile: a kernel takes (content, row), "
                f"and this one {n_taken} arguments"
            ) from error
        raise TypeError(
            f"the kernel {name_of(kernel)} does not compile for {wanted}: {error}"
        ) from error
    if signature is None:
        raise TypeError(f"the kernel {name_of(kernel)} is compiled for others than {wanted}")
    returned = types.unliteral(signature.return_type)
    try:
        found = numba.np.numpy_support.as_dtype(returned)
    except (NotImplementedError, numba.core.errors.NumbaError):
        found = None
    if found is None or not np.can_cast(found, dtype, "same_kind"):
        raise TypeError(f"the kernel {name_of(kernel)} returns {returned}, which is no {dtype}")
    return dispatcher


def _find_parallel(library: Any) -> str | None:
    """Return the name of the function in compiled code that starts threads of numba's; or None.

    All that a function calls is linked into its code, so that nothing that it calls is overlooked.
    """
    module = library._get_module_for_linking()  # which one that comes from a cache has, too
    if _START_OF_THREADS not in str(module):
        return None
    names = map(_find_parallel, library._linking_libraries)
    return next((name for name in names if name not in (None, _WRAPPER)), str(library.name))


def _is_parallel(kernel: Any, guilty: str) -> ValueError:
    """Return the error for a kernel that runs, or calls what runs, on threads of its own."""
    name = name_of(kernel)
    who = name if guilty == name else f"{name} calls {guilty}, which"
    return ValueError(
        f"the kernel {who} is compiled with parallel=True; a scan calls it from several threads "
        "already"
    )


def _drive_plain(
    kernel: Callable[..., Any],
    dtype: np.dtype[Any],
    spans: int,
    values: int,
    row: int,
    bounds: int,
    stop: int,
) -> None:
    """Do what a compiled driver does; rows have their fields as attributes too, as compiled."""
    record = np.dtype((np.record, s.LAYER))
    for i in range(memory.load_i64(bounds), memory.load_i64(bounds + s.WORD_BYTES)):
        if memory.load_i64(stop) != 0:
            return
        memory.store_i64(bounds, i)
        span = spans + i * _SPAN_BYTES
        n_bytes = memory.load_i64(span + _N_BYTES)
        content = memory.array_at(None, memory.load_i64(span + _ADDRESS), n_bytes, np.uint8)
        layer_row = memory.array_at(None, memory.load_i64(span + _ROW_ADDRESS), 1, record)[0]
        value = kernel(content, layer_row.copy())
        if np.ndim(value) or not np.can_cast(np.asarray(value).dtype, dtype, "same_kind"):
            kind = type(value).__name__
            raise TypeError(f"the kernel {name_of(kernel)} returns {kind}, which is no {dtype}")
        memory.store_item(values, i, value, dtype)


def name_of(kernel: Any) -> str:
    """Return what a kernel is called."""
    return str(getattr(kernel, "__qualname__", None) or repr(kernel))
