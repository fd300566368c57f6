"""What another user of the machine can reach while a program runs: nothing of it."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from asyncflow_ext import WorkflowEngine
from rhapsody.backends import ConcurrentExecutionBackend, DaskExecutionBackend

pytestmark = [
    pytest.mark.asyncflow,
    pytest.mark.skipif(
        sys.platform != "linux" or os.geteuid() != 0, reason="only root can act as another user"
    ),
]

NOBODY = 65534

PROBE = """
import json, os, socket, ssl, sys

wanted = json.loads(sys.stdin.read())
os.setgroups([])
os.setgid(wanted["uid"])
os.setuid(wanted["uid"])
found = {}

def read(path):
    if os.path.isdir(path):
        return os.listdir(path)
    with open(path, "rb") as file:
        return len(file.read(10))

def ask(address, secure):
    unix = isinstance(address, str)
    with socket.socket(socket.AF_UNIX if unix else socket.AF_INET) as plain:
        plain.settimeout(3)
        plain.connect(address if unix else tuple(address))
        link = plain
        if secure:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            link = context.wrap_socket(plain)
        link.sendall(b"GET /metrics HTTP/1.0\\r\\n\\r\\n")
        return link.recv(100).decode(errors="replace").partition("\\r")[0]

def note(name, call, *args):
    try:
        found[name] = call(*args)
    except TimeoutError:
        found[name] = "no answer"
    except OSError as error:
        found[name] = type(error).__name__

for path in wanted["paths"]:
    note(path, read, path)
for address in wanted["addresses"]:
    note(str(address), ask, address, False)
    if isinstance(address, list):
        note(f"tls {address}", ask, address, True)
print(json.dumps(found))
"""

REFUSED = frozenset(
    {
        *("BrokenPipeError", "ConnectionRefusedError", "ConnectionResetError", "PermissionError"),
        "FileNotFoundError",  # of another program, which has ended meanwhile
        *("SSLCertVerificationError", "SSLEOFError", "SSLError", "SSLZeroReturnError"),
        *("no answer", "", "HTTP/1.1 404 Not Found"),
    }
)


def probe(paths: list[str], addresses: list[Any]) -> dict[str, Any]:
    """Read paths and talk to addresses as another user; return what came of each."""
    run = subprocess.run(
        [sys.executable, "-c", PROBE],
        input=json.dumps({"uid": NOBODY, "paths": paths, "addresses": addresses}),
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    return dict(json.loads(run.stdout))


def listening() -> list[Any]:
    """Return the addresses at which this program and its children listen."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    addresses: list[Any] = []
    for process in processes:
        addresses += [
            ["127.0.0.1", link.laddr.port]
            for link in process.net_connections("inet")
            if link.status == psutil.CONN_LISTEN
        ]
        addresses += [link.laddr for link in process.net_connections("unix") if link.laddr]
    return [a if isinstance(a, list) else a.replace("@", "\0", 1) for a in addresses]


def files_of_rhapsody() -> list[str]:
    folders = [Path(tempfile.gettempdir()), Path("/dev/shm")]
    return [str(path) for folder in folders for path in folder.glob("rhapsody-*")]


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that every user may enter and list."""
    with tempfile.TemporaryDirectory(prefix="public-", dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        (Path(folder) / "open").write_text("for everybody")
        yield Path(folder)


@pytest.mark.dask
@pytest.mark.slow
@pytest.mark.timeout(150)
async def test_another_user_reads_and_runs_nothing(public: Path) -> None:
    backends = [
        ConcurrentExecutionBackend(executor="process", max_workers=1, name="processes"),
        DaskExecutionBackend({"n_workers": 1, "threads_per_worker": 1}, name="dask"),
    ]
    journal = public / "run.journal"
    shared = listening()  # servers that other tests have started
    async with WorkflowEngine.create(backend=backends, journal=journal) as flow:

        @flow.function_task(backend="processes")
        async def large() -> bytes:
            return b"secret" * 500_000

        @flow.function_task(backend="dask")
        async def count(data: bytes) -> int:
            return len(data)

        data = large()
        assert await count(data) == 3_000_000
        assert flow.journal is not None
        await flow.journal.flush()
        paths = [*files_of_rhapsody(), *map(str, public.glob("run.journal*"))]
        addresses = [address for address in listening() if address not in shared]
        assert len(paths) > 4
        assert len(addresses) > 2
        found = probe([*paths, str(public / "open")], addresses)
    assert found.pop(str(public / "open")) == 10  # the probe works
    assert {name: what for name, what in found.items() if what not in REFUSED} == {}
