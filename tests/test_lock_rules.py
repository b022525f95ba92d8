"""Locks are taken in one order, and nothing foreign is called under the writer's or the budget's.

Each verb is called first in a process of its own, where all that it imports and compiles is seen.
Finalizers are not watched: the collector runs them wherever it likes, so they never wait
(docs/threads.md).
"""

from __future__ import annotations

import logging
from functools import partial

import pytest
from support.processes import needs_fork, run_module
from support.regions import make_files_of_many_kinds

from jessymem.locks import Lock, Unready, is_any_mine, outside
from jessymem.logger import logger


@needs_fork
def test_verbs_call_nothing_foreign_under_a_lock(tmp_path):
    make_files_of_many_kinds(tmp_path)
    assert run_module("support.watched_locks", str(tmp_path)) == ""


def test_what_has_to_be_prepared_is_so_without_a_lock():
    lock, prepared = Lock(), []
    with lock.hold():
        assert is_any_mine()
        with pytest.raises(Unready) as caught:
            outside(partial(prepared.append, 1))
        assert prepared == []
    assert not is_any_mine()
    caught.value.prepare()
    outside(partial(prepared.append, 2))
    assert prepared == [1, 2]


def test_a_lock_that_is_gone_is_nobody_s():
    hold = Lock().hold()  # the lock has no other reference
    assert not is_any_mine()
    del hold


def test_a_record_that_is_made_under_a_lock_is_written_after_it(caplog):
    caplog.set_level(logging.INFO, "jessymem")
    outer, inner = Lock(), Lock()
    with outer.hold():
        with inner.hold():
            logger.info("first", extra={})
        logger.write_waiting()
        logger.info("second", extra={})
        assert caplog.messages == []
    logger.write_waiting()
    logger.info("third", extra={})
    assert caplog.messages == ["first", "second", "third"]
