"""Journals whose files were damaged at random places."""

import asyncio
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from rhapsody.errors import JournalError
from rhapsody.journal import Journal

CALLS = 60
PAGE = 4096


def task(x: int) -> int:
    return x


def value(number: int) -> bytes:
    """Return a result that is small, of several pages, or a file."""
    return b"%d " % number * (3, 300, 3000, 600_000)[number % 4 if number < 8 else number % 3]


async def recall(path: Path) -> int:
    """Find or record the results of all calls; return how many were found."""
    journal = Journal(path)
    journal.bind(asyncio.get_running_loop())
    found = 0
    try:
        function = journal.function("task", "function", task)
        for number in range(CALLS):
            call = journal.call(function, (number,), {})
            assert call is not None
            fields: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            if journal.recall(call, fields.set_result) and (known := await fields) is not None:
                assert known["return_value"] == value(number)
                found += 1
            else:
                journal.done(call, {"return_value": value(number)})
        await journal.flush()
    finally:
        await journal.close()
    return found


def damage(path: Path, chance: random.Random) -> None:
    """Change bits, overwrite a page, exchange two pages, or cut a file."""
    data = bytearray(path.read_bytes())
    first, second = (chance.randrange(max(1, len(data) // PAGE)) * PAGE for _ in range(2))
    match chance.choice(("bits", "page", "exchange", "cut")):
        case "bits":
            for _ in range(chance.randint(1, 20)):
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        case "page":
            data[first : first + PAGE] = chance.choice((bytes(PAGE), chance.randbytes(PAGE)))
        case "exchange":
            pages = data[first : first + PAGE], data[second : second + PAGE]
            data[second : second + PAGE], data[first : first + PAGE] = pages
        case "cut":
            del data[chance.randrange(len(data)) :]
    path.write_bytes(data)


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a program that was killed, with a log of changes and files of large results."""
    folder, copy = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("killed")

    async def run() -> None:
        journal = Journal(folder / "run.journal")
        journal.bind(asyncio.get_running_loop())
        function = journal.function("task", "function", task)
        for number in range(CALLS):
            if number == CALLS // 2:
                await journal.flush()
                journal._store._database.execute("PRAGMA wal_checkpoint")
            call = journal.call(function, (number,), {})
            assert call is not None
            assert not journal.recall(call, lambda _: None)
            journal.done(call, {"return_value": value(number)})
        await journal.flush()
        shutil.copytree(folder, copy, dirs_exist_ok=True)
        await journal.close()

    asyncio.run(run())
    assert (copy / "run.journal-wal").stat().st_size > PAGE
    return copy / "run.journal"


@pytest.mark.parametrize("seed", range(24))
async def test_damaged_file_gives_no_wrong_result(journal: Path, seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    shutil.copytree(journal.parent, tmp_path, dirs_exist_ok=True)
    files = sorted(path for path in tmp_path.rglob("run.journal*") if path.is_file())
    files += [path for path in tmp_path.rglob("*") if path.parent.name.endswith(".files")]
    damage(chance.choice([path for path in files if path.stat().st_size > 200]), chance)
    said = ""
    try:
        await recall(tmp_path / "run.journal")  # which checks the results
    except JournalError as error:
        said = str(error)
    advice = ("move the file away to start anew", "choose another file")
    assert said == "" or said.endswith(advice)


async def test_undamaged_file_gives_all_results(journal: Path, tmp_path: Path) -> None:
    shutil.copytree(journal.parent, tmp_path, dirs_exist_ok=True)
    assert await recall(tmp_path / "run.journal") == CALLS
