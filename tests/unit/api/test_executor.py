"""`session.executor()`: a `concurrent.futures.Executor` over the backends of a session."""

import asyncio
import concurrent.futures
import functools
import operator
import threading
from collections.abc import Iterator
from concurrent.futures import Executor
from typing import Any

import pytest

from rhapsody import Session
from rhapsody.api import SessionError
from rhapsody.backends import ConcurrentExecutionBackend
from tests.support.foreign import ForeignBackend
from tests.support.held import HeldBackend
from tests.support.sessions import boom, work


@pytest.fixture
def session() -> Iterator[Session]:
    with Session([ConcurrentExecutionBackend(max_workers=2)]) as session:
        yield session


def test_futures_have_results_and_exceptions(session: Session) -> None:
    with session.executor() as executor:
        assert isinstance(executor, Executor)
        assert executor.submit(pow, 2, 5).result(20) == 32
        with pytest.raises(ValueError, match="intended"):
            executor.submit(boom).result(20)


@pytest.mark.parametrize("chunksize", [1, 3])
def test_map_is_in_order(session: Session, chunksize: int) -> None:
    with session.executor() as executor:
        results = executor.map(pow, range(8), [2] * 8, chunksize=chunksize)
        assert list(results) == [number**2 for number in range(8)]


class Negate:
    async def __call__(self, number: int) -> int:
        return -number


@pytest.mark.parametrize("chunksize", [1, 3])
@pytest.mark.parametrize("function", [Negate(), functools.partial(Negate())])
def test_map_awaits_async_functions(session: Session, function: Any, chunksize: int) -> None:
    expected = [0, -1, -2, -3]
    with session.executor() as executor:
        assert list(executor.map(function, range(4), chunksize=chunksize)) == expected
    assert list(session.map(function, range(4), chunksize=chunksize)) == expected


def test_functions_of_concurrent_futures_take_its_futures(session: Session) -> None:
    with session.executor() as executor:
        futures = [executor.submit(operator.neg, number) for number in range(5)]
        done, pending = concurrent.futures.wait(futures, timeout=20)
        assert (done, pending) == (set(futures), set())
        ended = concurrent.futures.as_completed(futures, timeout=20)
        assert {future.result() for future in ended} == {0, -1, -2, -3, -4}


async def test_it_works_while_the_loop_of_the_session_is_blocked() -> None:
    async with Session([ConcurrentExecutionBackend()]) as session:
        waiting = session.submit(work)
        with session.executor() as executor:
            assert executor.submit(pow, 2, 3).result(20) == 8
        assert (await waiting).return_value == 3


async def test_loop_runs_functions_in_it() -> None:
    async with Session([ConcurrentExecutionBackend()]) as session:
        with session.executor() as executor:
            loop = asyncio.get_running_loop()
            assert await loop.run_in_executor(executor, pow, 2, 4) == 16


def test_cancel_stops_a_call_and_wakes_waiters() -> None:
    held = HeldBackend()
    with Session([held]) as session, session.executor() as executor:
        future = executor.submit(work)
        assert held.entered.wait(20)
        assert future.cancel()
        assert concurrent.futures.wait([future], timeout=20).done == {future}
        assert future.cancelled()


def test_shutdown_cancels_futures_and_refuses_new_calls() -> None:
    held = HeldBackend()
    with Session([held]) as session:
        executor = session.executor()
        futures = [executor.submit(work) for _ in range(3)]
        executor.shutdown(cancel_futures=True)
        assert all(future.cancelled() for future in futures)
        with pytest.raises(RuntimeError, match="after shutdown"):
            executor.submit(work)
        held.release()
        assert session.submit(work).result(20)


def test_shutdown_waits_for_running_calls(session: Session) -> None:
    started, gate = threading.Event(), threading.Event()

    def wait() -> bool:
        started.set()
        return gate.wait(20)

    executor = session.executor()
    future = executor.submit(wait)
    assert started.wait(20)
    executor.shutdown(wait=False)
    gate.set()
    executor.shutdown()
    assert future.done()
    assert future.result() is True


def test_closed_session_cancels_futures() -> None:
    held = HeldBackend()
    with Session([held]) as session:
        future = session.executor().submit(work)
        assert held.entered.wait(20)
    assert concurrent.futures.wait([future], timeout=20).done == {future}
    assert future.cancelled()
    with pytest.raises(SessionError, match="is closed"):
        session.executor().submit(work)


def test_closed_session_cancels_futures_that_wait_for_their_retry() -> None:
    failed = threading.Event()

    def fail() -> None:
        failed.set()
        raise OSError("flaky")

    backend = ConcurrentExecutionBackend()
    with Session([backend]) as session:
        future = session.options(retries=9, backoff=30).executor().submit(fail)
        assert failed.wait(20)
    assert future.cancelled()


def test_options_apply_to_its_calls(session: Session) -> None:
    attempts = []

    def fail_once() -> int:
        attempts.append(1)
        if len(attempts) == 1:
            raise OSError("flaky")
        return len(attempts)

    with session.options(retries=1, backoff=0.001).executor() as executor:
        assert executor.submit(fail_once).result(20) == 2
    attempts.clear()
    with session.executor() as executor, pytest.raises(OSError, match="flaky"):
        executor.submit(fail_once).result(20)


def test_backend_without_run_one_is_refused() -> None:
    with Session([ForeignBackend()]) as session, pytest.raises(SessionError, match="lacks"):
        session.executor().submit(work)


def test_dask_collections_are_computed_by_it(session: Session) -> None:
    dask = pytest.importorskip("dask")
    with session.executor() as executor:
        total = dask.delayed(sum)([dask.delayed(pow)(n, 2) for n in range(4)])
        assert total.compute(scheduler=executor) == 14
