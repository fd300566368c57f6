"""A model served by the command, with the embedded model."""

import json
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from rhapsody.command.serve import in_terms_of_options, parse_replicas, status_line
from rhapsody.errors import ConfigurationError

KEY = "a-secret"


@pytest.fixture(params=[["demo"]])
def server(request: pytest.FixtureRequest) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """A running server of models, and its address."""
    command = [sys.executable, "-m", "rhapsody", "serve", "--engine", "embedded"]
    process = subprocess.Popen(
        [*command, "--replicas", "2", "--port", "0", *request.param],
        stderr=subprocess.PIPE,
        text=True,
        env={"PATH": "/usr/bin:/bin", "RHAPSODY_API_KEY": KEY},
    )
    assert process.stderr is not None
    try:
        lines = [process.stderr.readline(), process.stderr.readline()]
        found = re.search(r"Serving at (http://127\.0\.0\.1:\d+)/v1 with its key", lines[1])
        assert found is not None, lines
        yield process, found[1]
    finally:
        process.kill()
        process.communicate(timeout=30)


def test_server_responds_and_stops_clean_on_interrupt(
    server: tuple["subprocess.Popen[str]", str],
) -> None:
    process, address = server
    body = {"prompts": ["Hello"], "max_tokens": 2}
    request = urllib.request.Request(
        f"{address}/generate",
        json.dumps(body).encode(),
        {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        assert response.status == 200
    chat = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
    request = urllib.request.Request(
        f"{address}/v1/chat/completions",
        json.dumps(chat).encode(),
        {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        assert response.status == 200
    top = subprocess.run(
        [sys.executable, "-m", "rhapsody", "top", address, "--once"],
        capture_output=True,
        text=True,
        timeout=50,
        env={"PATH": "/usr/bin:/bin", "RHAPSODY_API_KEY": KEY},
        check=False,
    )
    assert top.returncode == 0, top.stderr
    assert re.search(r"replicas +2 ready", top.stdout, re.IGNORECASE)
    assert re.search(r"prompts +1 done", top.stdout)
    assert re.search(r"requests +2 done, 0 running\ngenerated 4 tokens", top.stdout)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert errors.splitlines()[-1] == "Stopped."
    assert "Traceback" not in errors


def test_top_without_the_key_says_so(server: tuple["subprocess.Popen[str]", str]) -> None:
    _, address = server
    done = subprocess.run(
        [sys.executable, "-m", "rhapsody", "top", address, "--once"],
        capture_output=True,
        text=True,
        timeout=50,
        env={"PATH": "/usr/bin:/bin"},
        check=False,
    )
    assert done.returncode == 1
    assert "it needs a key" in done.stderr


@pytest.mark.parametrize(
    "server", [["demo", "--page"], ["small", "large", "--page"]], indirect=True
)
def test_live_page_shows_model_servers_and_clients(
    server: tuple["subprocess.Popen[str]", str],
) -> None:
    process, _ = server
    assert process.stderr is not None
    name, page = process.stderr.readline().strip().rsplit(" ", 1)
    assert name == "Live page:"
    with urllib.request.urlopen(f"{page}report", timeout=30) as response:
        report = response.read().decode()
    assert report.count("<td>ready</td>") >= 2
    assert "<th>default</th><td>0</td>" in report
    with pytest.raises(urllib.error.HTTPError):  # only who knows the secret can read it
        urllib.request.urlopen("/".join([*page.split("/")[:3], "report"]), timeout=30)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert errors.splitlines()[-1] == "Stopped."


def test_status_line_counts_replicas_and_prompts() -> None:
    statistics = {
        "batches": 14,
        "batched_prompts": 120,
        "pending_prompts": 3,
        "replicas": [
            {"state": "READY", "restarts": 1},
            {"state": "READY", "restarts": 0},
            {"state": "STARTING", "restarts": 0},
        ],
    }
    assert status_line(statistics) == (
        "replicas: 2 ready, 1 starting (1 restarts) | pending: 3 | prompts: 120 in 14 batches"
    )


def test_status_line_before_the_start() -> None:
    assert status_line({}) == "replicas: none | pending: 0 | prompts: 0 in 0 batches"


@pytest.mark.parametrize("server", [["small", "large"]], indirect=True)
def test_several_models_share_the_address(server: tuple["subprocess.Popen[str]", str]) -> None:
    process, address = server
    request = urllib.request.Request(
        f"{address}/v1/models", headers={"Authorization": f"Bearer {KEY}"}
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        assert [one["id"] for one in json.load(response)["data"]] == ["small", "large"]
    top = subprocess.run(
        [sys.executable, "-m", "rhapsody", "top", address, "--once"],
        capture_output=True,
        text=True,
        timeout=50,
        env={"PATH": "/usr/bin:/bin", "RHAPSODY_API_KEY": KEY},
        check=False,
    )
    assert top.returncode == 0, top.stderr
    assert re.search(r"replicas +4 ready", top.stdout, re.IGNORECASE)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0


def test_status_line_shows_how_many_replicas_are_wanted() -> None:
    statistics = {"replicas": [{"state": "READY", "restarts": 0}], "scaling": {"wanted": 3}}
    assert status_line(statistics).startswith("replicas: 1 ready, 3 wanted |")


@pytest.mark.parametrize(
    ("text", "parsed"), [("2", (2, None)), ("1:4", (4, (1, 4))), ("0:1", (1, (0, 1)))]
)
def test_replicas_are_a_number_or_bounds(text: str, parsed: object) -> None:
    assert parse_replicas(text) == parsed


@pytest.mark.parametrize("text", ["", "0", "-1", "4:1", "-1:2", "1:2:3", "a:b", ":", "1:", ":4"])
def test_invalid_replicas_are_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(ConfigurationError, match="--replicas must be a number such as 2"):
        parse_replicas(text)


def test_impossible_placement_is_refused_in_one_line() -> None:
    command = ["serve", "demo", "--engine", "embedded", "--nodes-per-replica", "2"]
    run = subprocess.run(
        [sys.executable, "-m", "rhapsody", *command],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert run.returncode == 1
    assert "the embedded model runs in one process" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("lower num_gpus, or pass num_gpus=0", "lower --num-gpus, or pass --num-gpus 0"),
        ("'max_pending' must be", "'--max-pending' must be"),
        ("port=80 of host a", "--port 80 of host a"),
        ("'cors_origins' must be, or models=3", "'--cors-origin' must be, or models=3"),
        ("num_gpus_per_node=3, replicas", "num_gpus_per_node=3, replicas"),
    ],
)
def test_errors_name_the_options_of_the_command(message: str, said: str) -> None:
    assert in_terms_of_options(message) == said


def test_error_of_the_server_names_options() -> None:
    command = [sys.executable, "-m", "rhapsody", "serve", "demo", "--engine", "embedded"]
    command += ["--max-pending", "0", "--port", "0"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode, "'--max-pending' must be" in run.stderr) == (1, True), run.stderr
