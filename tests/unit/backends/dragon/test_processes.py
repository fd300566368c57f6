"""Helpers for processes that Dragon places, without a runtime."""

import logging
import threading

import pytest

from rhapsody.backends.dragon import processes


def test_thread_does_not_delay_the_end_of_the_program() -> None:
    seen: list[tuple[int, str]] = []
    thread = processes.in_thread(
        lambda number: seen.append((number, threading.current_thread().name)), "test", 3
    )
    thread.join(10)
    assert seen == [(3, "rhapsody-dragon-test")]
    assert thread.daemon


def test_for_each_calls_many_items_at_a_time() -> None:
    barrier = threading.Barrier(processes.CONCURRENT_STARTS, timeout=10)
    seen: list[int] = []

    def wait_for_others(number: int) -> None:
        barrier.wait()
        seen.append(number)

    processes.for_each(wait_for_others, range(processes.CONCURRENT_STARTS))
    assert sorted(seen) == list(range(processes.CONCURRENT_STARTS))


def test_wait_for_any_returns_ended_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_join", lambda puids, seconds: [(puids[1], -9)])
    assert processes.wait_for_any([7, 8], 0.1) == [(8, -9)]


def test_unwatched_processes_have_no_exit_code(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(puids: list[int], seconds: float | None) -> list[tuple[int, int]]:
        raise RuntimeError("connection lost")

    monkeypatch.setattr(processes, "_join", fail)
    with caplog.at_level(logging.ERROR):
        assert processes.wait_for_any([7, 8]) == [(7, None), (8, None)]
    assert "Dragon can no longer watch processes of this backend: connection lost" in caplog.text


def test_exit_codes_waits_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[list[int]] = []

    def end_first(puids: list[int], seconds: float | None) -> list[tuple[int, int]]:
        waited.append(list(puids))
        return [(puids[0], puids[0] % 2)]

    monkeypatch.setattr(processes, "_join", end_first)
    assert processes.exit_codes([7, 8, 9]) == {7: 1, 8: 0, 9: 1}
    assert waited == [[7, 8, 9], [8, 9], [9]]


def test_exit_codes_raises_if_dragon_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(puids: list[int], seconds: float | None) -> list[tuple[int, int]]:
        raise RuntimeError("connection lost")

    monkeypatch.setattr(processes, "_join", fail)
    with pytest.raises(RuntimeError, match="connection lost"):
        processes.exit_codes([7])
