"""Helpers that move rows: how many, for whom, and what happens when something goes wrong."""

import os
import threading

import numpy as np
import pytest

from numba_swap import native
from numba_swap.device.host_threads import SHARE_BYTES, HostThreads, host_threads

loops = native.staging


class Work:
    """A job of one row of so many shares, and whether it was done."""

    def __init__(self, shares):
        nbytes = shares * SHARE_BYTES
        self.source, self.target = np.full(nbytes, 7, np.uint8), np.zeros(nbytes, np.uint8)
        self.near = np.array([self.source.ctypes.data], np.uint64)
        self.offsets = np.zeros(1, np.int64)
        self.job = np.zeros(len(loops.JOB), np.int64)
        self.job[[loops.NEAR, loops.OFFSETS]] = self.near.ctypes.data, self.offsets.ctypes.data
        self.job[[loops.UNIFORM, loops.END]] = nbytes
        self.job[[loops.ROWS, loops.SHARE]] = 1, SHARE_BYTES
        self.job[loops.PLACE] = self.target.ctypes.data

    @property
    def done(self):
        return bool((self.target == 7).all())


@pytest.mark.parametrize(("threads", "shares", "helpers"), [(1, 9, 0), (4, 9, 3), (9, 3, 2)])
def test_as_many_help_as_there_is_work_for(threads, shares, helpers):
    team = HostThreads()
    for _ in range(20):
        work = Work(shares)
        with team.at_work(work.job, threads, work):
            pass
        assert work.done
        assert team.count == helpers
    assert team._holds is None


def test_who_finds_them_busy_does_without():
    team, outer, inner = HostThreads(), Work(8), Work(8)
    with team.at_work(outer.job, 3, outer):
        with team.at_work(inner.job, 3, inner):
            pass
        assert inner.done
    assert outer.done
    assert team.count == 2


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_in_the_body_leaves_nobody_at_work(threads):
    team, work = HostThreads(), Work(64)
    for _ in range(20):
        with pytest.raises(KeyboardInterrupt), team.at_work(work.job, threads, work):
            raise KeyboardInterrupt
        assert int(team._job[loops.WORKING]) == 0
    after = Work(64)
    with team.at_work(after.job, threads, after):
        pass
    assert after.done


def test_a_system_that_gives_no_threads(monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    team, work = HostThreads(), Work(8)
    with team.at_work(work.job, 4, work):
        pass
    assert work.done
    assert team.count == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_starts_its_own():
    work = Work(8)
    with host_threads().at_work(work.job, 3, work):
        pass
    child = os.fork()
    if child == 0:
        mine = Work(8)
        with host_threads().at_work(mine.job, 3, mine):
            pass
        os._exit(0 if mine.done else 1)
    assert os.waitpid(child, 0)[1] == 0
