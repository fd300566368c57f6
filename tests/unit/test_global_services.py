"""The lock that replaces Dragon's."""

import importlib.util
import threading

import pytest

from rhapsody.global_services import ReceiveLock, mend_requests


def test_lock_is_taken_by_one_thread() -> None:
    lock = ReceiveLock({})
    assert lock.acquire()
    assert not lock.acquire(blocking=False)
    lock.release()
    assert lock.acquire(blocking=False)


def test_release_wakes_a_waiting_thread_once_the_lock_is_free() -> None:
    class Event(threading.Event):
        def set(self) -> None:
            assert lock.acquire(blocking=False), "the lock is still taken"
            super().set()

    first, last = threading.Event(), Event()
    lock = ReceiveLock({1: first, 2: last})
    lock.acquire()
    lock.release()
    assert last.is_set()
    assert not first.is_set()


@pytest.mark.skipif(importlib.util.find_spec("dragon") is None, reason="needs dragonhpc")
def test_lock_in_use_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from dragon.globalservices import api_setup

    taken = threading.Lock()
    monkeypatch.setattr(api_setup, "_GS_RECV_LOCK", taken)
    with taken:
        mend_requests()
    assert api_setup._GS_RECV_LOCK is taken


@pytest.mark.skipif(importlib.util.find_spec("dragon") is None, reason="needs dragonhpc")
def test_lock_of_dragon_is_replaced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from dragon.globalservices import api_setup

    monkeypatch.setattr(api_setup, "_GS_RECV_LOCK", threading.RLock())
    mend_requests()
    lock = api_setup._GS_RECV_LOCK
    mend_requests()
    assert isinstance(lock, ReceiveLock)
    assert api_setup._GS_RECV_LOCK is lock
    assert lock._waiting is api_setup._WAKEUPS
