"""Rows of data through the embedded model."""

import asyncio
import csv
import json
from pathlib import Path
from typing import Any

import pytest

from rhapsody import Session
from tests.support.inference import embedded, slow
from tests.support.waiting import until


async def test_rows_of_a_file_are_embedded_in_another(tmp_path: Path) -> None:
    rows = tmp_path / "in.csv"
    rows.write_text("name,text\n" + "".join(f"{n},heat and light {n}\n" for n in range(200)))
    to = tmp_path / "out.jsonl"
    async with Session([embedded()]) as session:
        counts = await session.generate_from(rows, "{text}", to=to, kind="embed")
    assert counts == (200, 0, 0)
    found = [json.loads(line) for line in to.read_text().splitlines()]
    assert {one["index"] for one in found} == set(range(200))
    assert len(found[0]["response"]) == len(found[1]["response"]) > 10


async def test_interrupted_run_continues(tmp_path: Path) -> None:
    to = tmp_path / "out.csv"
    rows = [{"n": number, "prompt": f"What is {number}?"} for number in range(40)]
    options: dict[str, Any] = {"to": to, "max_tokens": 4, "at_once": 8}
    config = slow(tmp_path, 60, **{"max-num-seqs": 2})
    async with Session([embedded(config_file=config)]) as session:
        running = asyncio.ensure_future(session.generate_from(rows, **options))
        await until(lambda: to.exists() and to.read_text().count("\n") > 4)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        before = to.read_text().count("\n") - 1
        counts = await session.generate_from(rows, **options)
        assert session.get_statistics()["tasks"].get("RUNNING", 0) == 0
    assert counts == (40 - before, 0, before)
    with to.open(newline="") as file:
        assert sorted(int(one["n"]) for one in csv.DictReader(file)) == list(range(40))
