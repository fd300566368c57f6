"""The thread that makes keys: its order, its failures and its end."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from rhapsody.journal.key_thread import KeyThread


@pytest.fixture
def keys() -> Iterator[KeyThread]:
    made = KeyThread()
    yield made
    made.stop()


async def test_keys_are_made_in_order_though_files_are_read_in_parallel(keys: KeyThread) -> None:
    made: list[str] = []
    read_last = threading.Event()

    def read_first() -> str:
        assert read_last.wait(30)
        return "first"

    def read_second() -> str:
        read_last.set()
        return "second"

    await asyncio.gather(keys.run(read_first, made.append), keys.run(read_second, made.append))
    assert made == ["first", "second"]


async def test_error_of_reading_is_raised_and_later_keys_are_made(keys: KeyThread) -> None:
    def read() -> str:
        raise OSError("no such file")

    with pytest.raises(OSError, match="no such file"):
        await keys.run(read, str)
    assert await keys.run(tuple, len) == 0


async def test_stop_is_idempotent_and_ends_the_threads(keys: KeyThread) -> None:
    await keys.run(tuple, len)
    keys.stop()
    keys.stop()
    assert not [t for t in threading.enumerate() if t.name.startswith("rhapsody-journal-")]
