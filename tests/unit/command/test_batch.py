"""The requests of a file, through the batcher, into another file."""

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.inference import slow
from tests.support.waiting import until

CHAT = "/v1/chat/completions"


def chat(custom_id: str, **body: Any) -> str:
    messages = [{"role": "user", "content": f"What is {custom_id}?"}]
    line = {"custom_id": custom_id, "method": "POST", "url": CHAT}
    return json.dumps({**line, "body": {"messages": messages, "max_tokens": 4, **body}})


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "in.jsonl", tmp_path / "out.jsonl"


def start(files: tuple[Path, Path], *options: str) -> "subprocess.Popen[str]":
    source, output = files
    command = [sys.executable, "-m", "rhapsody", "batch", str(source), "-o", str(output)]
    return subprocess.Popen(
        [*command, "--model", "embedded", *options], stderr=subprocess.PIPE, text=True
    )


def run(files: tuple[Path, Path], *options: str) -> tuple[int, str]:
    process = start(files, *options)
    _, log = process.communicate(timeout=50)
    return process.returncode, log


def results(output: Path) -> dict[str, Any]:
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    found = {line["custom_id"]: line for line in lines}
    assert len(found) == len(lines)
    return found


def test_wrong_lines_are_errors_and_the_others_are_done(files: tuple[Path, Path]) -> None:
    source, output = files
    embed = {"custom_id": "vectors", "url": "/v1/embeddings", "body": {"input": ["a", "b"]}}
    lines = [chat("one"), "no json", "", json.dumps(embed), chat("one"), chat("x", colour=1)]
    source.write_bytes("\n".join(lines).encode() + b"\n\xff{}\n")
    status, log = run(files)
    assert status == 0
    counts, first, where = log.splitlines()
    assert counts == "6 lines: 2 done, 4 errors"
    assert first.startswith("The first error is of line-2: line 2 is not JSON: Expecting value")
    assert where.startswith(f"All errors are in {output}; with --retry-errors the same command")
    found = results(output)
    assert set(found) == {"one", "line-2", "vectors", "line-5", "x", "line-7"}
    assert "line 7 is not JSON" in found["line-7"]["response"]["body"]["error"]["message"]
    assert found["one"]["response"]["body"]["choices"][0]["finish_reason"] == "length"
    assert len(found["vectors"]["response"]["body"]["data"]) == 2
    assert "not JSON" in found["line-2"]["error"]["message"]
    assert "is used by an earlier line" in found["line-5"]["error"]["message"]
    assert found["x"]["response"]["status_code"] == 400


async def test_interrupted_command_continues(files: tuple[Path, Path], tmp_path: Path) -> None:
    source, output = files
    source.write_text("\n".join(chat(f"q{number}") for number in range(40)))
    options = ("--config-file", slow(tmp_path, 20, **{"max-num-seqs": 2}))
    process = start(files, *options)
    await until(lambda: output.exists() and output.read_text().count("\n") >= 3)
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "the same command continues" in log
    before = output.read_text()
    with output.open("a") as file:
        file.write('{"custom_id": "q3')  # as kill -9 may leave it
    status, log = run(files)
    assert status == 0
    old = before.count("\n")
    done = f"40 lines: {40 - old} done, 0 errors, {old} with a result of an earlier run\n"
    assert log == done
    assert output.read_text().startswith(before)
    assert len(results(output)) == 40


@pytest.mark.parametrize("text", ["no json\n", "{}\n", "[1]\n"])
def test_other_file_is_not_overwritten(files: tuple[Path, Path], text: str) -> None:
    source, output = files
    source.write_text(chat("a"))
    output.write_text(text)
    status, log = run(files)
    assert status == 1
    assert "is not a result of a batch" in log
    assert output.read_text() == text


def test_input_cannot_be_the_output(files: tuple[Path, Path]) -> None:
    source, _ = files
    source.write_text(chat("a"))
    status, log = run((source, source))
    assert status == 1
    assert "another file" in log


def test_errors_are_sent_again_if_asked(files: tuple[Path, Path]) -> None:
    source, output = files
    source.write_text("\n".join([chat("good"), chat("bad", colour=1)]))
    run(files)
    good = results(output)["good"]
    source.write_text("\n".join([chat("good"), chat("bad")]))
    assert run(files)[1].splitlines()[:2] == [
        "2 lines: 0 done, 0 errors, 2 with a result of an earlier run",
        "Errors of earlier runs: 1",
    ]
    status, log = run(files, "--retry-errors")
    assert (status, log) == (
        0,
        "2 lines: 1 done, 0 errors, 1 with a result of an earlier run\n",
    )
    found = results(output)
    assert found["good"] == good
    assert found["bad"]["error"] is None


def test_terminal_shows_progress(files: tuple[Path, Path], tmp_path: Path) -> None:
    source, output = files
    source.write_text("\n".join(chat(f"q{number}") for number in range(40)))
    command = [sys.executable, "-m", "rhapsody", "batch", str(source), "-o", str(output)]
    command += ["--model", "embedded", "--config-file", slow(tmp_path, 20, **{"max-num-seqs": 2})]
    ours, terminal = pty.openpty()
    variables = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    with subprocess.Popen(command, stderr=terminal, env=variables) as process:
        os.close(terminal)
        shown = b""
        with contextlib.suppress(OSError), open(ours, "rb", buffering=0) as screen:  # EIO: the end
            while part := screen.read(4096):
                shown += part
    assert process.returncode == 0
    text = shown.decode()
    assert "0:00:00  starting embedded" in text
    assert re.search(r"0:00:0\d  [1-9]\d* of 40 lines, 0 errors, [0-9.]+/s, 0:00:0\d left", text)
    assert text.endswith("40 lines: 40 done, 0 errors\r\n")
