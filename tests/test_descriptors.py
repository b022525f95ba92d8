"""Where no descriptor is left, each verb works on its first use, or raises one of our errors.

What a verb needs is imported when it is first called, and every import opens files. It comes
before anything is changed.
"""

from __future__ import annotations

import errno

import pytest
from support import first_uses
from support.processes import needs_fork, run_module
from support.regions import make_files_of_many_kinds

from jessymem import MmapManager, PoolAllocator, RegionIOError
from jessymem.errors import clears_frames


@needs_fork
def test_a_first_use_without_descriptors_works_or_is_refused_in_our_words(tmp_path):
    make_files_of_many_kinds(tmp_path)
    assert run_module("support.first_uses", str(tmp_path)) == ""


#: What only shows what an object has, or is called by the rest of the package alone.
NO_VERBS = {"config", "n_failures", "after_fork", "recount", "within", "occupancies", "extents"}


@pytest.mark.parametrize("cls", [MmapManager, PoolAllocator])
def test_every_verb_is_among_them(cls):
    called = {name for _, call in first_uses.VERBS.values() for name in call.__code__.co_names}
    public = {name for name in dir(cls) if not name.startswith("_")}
    assert public - called - NO_VERBS == set()


def _raise(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EMFILE, "Too many open files"),
        ImportError("x.so: cannot open shared object file: Too many open files"),
        ImportError("it cannot be had"),
    ],
)
def test_only_an_import_makes_it_ours(error):
    with pytest.raises(type(error)) as caught:
        clears_frames(_raise)(error)
    assert not isinstance(caught.value, RegionIOError)
