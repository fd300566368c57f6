"""Own and given clusters of a Dask backend: start, connection, shutdown."""

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from rhapsody.backends import DaskExecutionBackend
from rhapsody.errors import BackendError, ConfigurationError
from tests.support.on_dask import HERE, SMALL, DaskRunner
from tests.support.waiting import until

pytestmark = pytest.mark.dask


def scheduler_address() -> str:
    """Return the address of the scheduler of the worker that runs this."""
    from distributed import get_worker

    return str(get_worker().scheduler.address)


def worker_addresses() -> list[str]:
    """Return the addresses of the worker that runs this and of its nanny."""
    from distributed import get_worker

    return [get_worker().address, get_worker().nanny]


def http_port() -> int:
    """Return the port of the HTTP server of the worker that runs this."""
    from distributed import get_worker

    return int(get_worker().http_server.port)


def child_pids() -> set[int]:
    return {
        child.pid
        for child in psutil.Process().children(recursive=True)
        if "resource_tracker" not in " ".join(child.cmdline())
    }


async def test_shutdown_closes_own_cluster() -> None:
    before, threads = child_pids(), set(threading.enumerate())
    backend = await DaskExecutionBackend({"n_workers": 2, "threads_per_worker": 1})
    runner = DaskRunner(backend)
    task = runner.function(scheduler_address)
    assert await runner.run(task) == ["DONE"]
    assert task["return_value"].startswith("tls://127.0.0.1:")
    assert len(child_pids() - before) == 2
    await backend.shutdown()
    assert child_pids() == before
    left = {t for t in set(threading.enumerate()) - threads if not t.name.startswith("rhapsody")}
    assert {t.name.split("_")[0] for t in left} <= {"Dask-Offload", "asyncio"}


@pytest.mark.parametrize(
    ("options", "listens"),
    [(SMALL, False), ({"n_workers": 1}, True)],
    ids=["threads", "processes"],
)
async def test_own_cluster_listens_on_loopback_only(options: dict[str, Any], listens: bool) -> None:
    before = set(psutil.Process().net_connections("inet"))
    async with DaskExecutionBackend(options) as backend:
        processes = [psutil.Process(), *map(psutil.Process, child_pids())]
        listening = [
            connection.laddr.ip
            for process in processes
            for connection in set(process.net_connections("inet")) - before
            if connection.status == psutil.CONN_LISTEN
        ]
        assert set(listening) == ({"127.0.0.1"} if listens else set())
        assert backend.dashboard_link is None


@pytest.mark.parametrize("options", [SMALL, {"n_workers": 1}], ids=["threads", "processes"])
async def test_own_cluster_has_a_dashboard_on_request(options: dict[str, Any]) -> None:
    async with DaskExecutionBackend({**options, "dashboard_address": "127.0.0.1:0"}) as backend:
        link = backend.dashboard_link
        assert link
        assert link.startswith("http://127.0.0.1:")
        async with aiohttp.ClientSession() as http, http.get(link) as response:
            assert response.status == 200


async def test_own_cluster_refuses_clients_without_its_certificate() -> None:
    import dask
    from distributed import Client, Security

    async with DaskExecutionBackend({"n_workers": 1, "threads_per_worker": 1}) as backend:
        runner = DaskRunner(backend)
        task = runner.function(worker_addresses)
        assert await runner.run(task) == ["DONE"]
        stranger = await asyncio.to_thread(Security.temporary)
        addresses = [backend.get_statistics()["scheduler"], *task["return_value"]]
        for address, security in itertools.product(addresses, (None, stranger)):
            if security is None:
                address = address.replace("tls://", "tcp://")
            with (
                dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
                pytest.raises(
                    OSError, match=r"Timed out|certificate does not match|Connection reset"
                ),
            ):
                await Client(address, asynchronous=True, security=security, set_as_default=False)
        assert await runner.run(runner.function(scheduler_address)) == ["DONE"]


async def test_workers_of_own_cluster_serve_no_pages() -> None:
    async with DaskExecutionBackend({"n_workers": 1, "threads_per_worker": 1}) as backend:
        runner = DaskRunner(backend)
        task = runner.function(http_port)
        assert await runner.run(task) == ["DONE"]
        async with aiohttp.ClientSession() as http:
            for page in ("/", "/info", "/metrics", "/health", "/json/index.html"):
                async with http.get(f"http://127.0.0.1:{task['return_value']}{page}") as response:
                    assert response.status == 404


INTERRUPTED = """
import asyncio
from rhapsody.backends import DaskExecutionBackend

async def main():
    await DaskExecutionBackend({"n_workers": 2})

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.parametrize("group", [False, True], ids=["program", "process group"])
async def test_interrupt_during_start_ends_program_at_once(group: bool, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(INTERRUPTED)
    program = await asyncio.create_subprocess_exec(
        sys.executable, tmp_path / "script.py", stderr=subprocess.PIPE, start_new_session=True
    )
    process = psutil.Process(program.pid)
    await until(lambda: any("spawn_main" in " ".join(c.cmdline()) for c in process.children()))
    start = time.monotonic()
    if group:  # as a terminal does
        os.killpg(program.pid, signal.SIGINT)
    else:
        program.send_signal(signal.SIGINT)
    _, errors = await asyncio.wait_for(program.communicate(), 30)
    assert time.monotonic() - start < 5, errors.decode()
    assert program.returncode != 0
    assert errors.decode().rstrip().endswith("KeyboardInterrupt")


async def test_shutdown_during_start_leaves_no_worker() -> None:
    before = child_pids()
    backend = DaskExecutionBackend({"n_workers": 2})
    starting = asyncio.ensure_future(backend.initialize())
    await until(lambda: child_pids() - before)
    await asyncio.wait_for(backend.shutdown(), 5)
    with pytest.raises(BackendError, match="shut down while it was starting"):
        await starting
    assert child_pids() == before


async def test_shutdown_does_not_wait_for_sync_function(
    caplog: pytest.LogCaptureFixture,
) -> None:
    backend = await DaskExecutionBackend({"n_workers": 1, "threads_per_worker": 1})
    runner = DaskRunner(backend)
    task = runner.function(time.sleep, 60)
    await runner.submit(task)
    await runner.running(task)
    start = time.monotonic()
    await backend.shutdown()
    assert time.monotonic() - start < 4
    assert [
        r for r in caplog.records if r.name == "distributed.nanny" and r.levelname == "WARNING"
    ] == []
    assert runner.reports.states(task["uid"])[-1] == "CANCELED"


@pytest.mark.parametrize("kind", ["cluster", "address", "client"])
async def test_given_sync_cluster_is_left_running(kind: str, cluster: Any) -> None:
    from distributed import Client

    with Client(cluster, set_as_default=False) as client:
        given = {
            "cluster": {"cluster": cluster},
            "address": {"cluster": cluster.scheduler_address},
            "client": {"client": client},
        }[kind]
        backend = await DaskExecutionBackend(**given)
        runner = DaskRunner(backend)
        task = runner.function(scheduler_address)
        assert await runner.run(task) == ["DONE"]
        assert task["return_value"] == cluster.scheduler_address
        await backend.shutdown()
        assert client.status == "running"
        assert client.submit(sum, [1, 2]).result(timeout=30) == 3


@pytest.mark.parametrize("kind", ["cluster", "client"])
async def test_given_async_cluster_is_left_running(kind: str) -> None:
    from distributed import Client, LocalCluster

    async with (
        LocalCluster(**SMALL, **HERE, asynchronous=True) as cluster,
        Client(cluster, asynchronous=True, set_as_default=False) as client,
    ):
        backend = await DaskExecutionBackend(
            cluster=cluster if kind == "cluster" else None,
            client=client if kind == "client" else None,
        )
        runner = DaskRunner(backend)
        task = runner.function(scheduler_address)
        assert await runner.run(task) == ["DONE"]
        assert task["return_value"] == cluster.scheduler_address
        await backend.shutdown()
        assert await client.submit(sum, [1, 2]) == 3


async def test_shutdown_leaves_nothing_on_given_cluster(cluster: Any) -> None:
    def on_scheduler(dask_scheduler: Any) -> Any:
        return (
            len(dask_scheduler.tasks),
            [n for n in dask_scheduler.worker_plugins if n.startswith("rhapsody")],
            [c for c in dask_scheduler.clients if "rhapsody" in c],
        )

    from distributed import Client

    async with DaskExecutionBackend(cluster=cluster) as backend:
        runner = DaskRunner(backend)
        await runner.run(runner.function(scheduler_address), runner.executable("/bin/echo"))
    with Client(cluster, set_as_default=False) as client:
        assert client.run_on_scheduler(on_scheduler) == (0, [], [])


async def test_default_client_is_unchanged(cluster: Any) -> None:
    from distributed import Client, default_client

    with Client(cluster) as client:
        async with DaskExecutionBackend(SMALL):
            assert default_client() is client


async def test_blocked_caller_loses_no_worker() -> None:
    import dask
    import distributed  # noqa: F401 - its import would overwrite the setting

    # The scheduler removes a worker that is silent for this long, or for ten heartbeats, 5 s.
    with dask.config.set({"distributed.scheduler.worker-ttl": "1s"}):
        async with DaskExecutionBackend({"n_workers": 2, "threads_per_worker": 1}) as backend:
            runner = DaskRunner(backend)
            tasks = [runner.function(scheduler_address) for _ in range(20)]
            await runner.submit(*tasks)
            time.sleep(7)  # noqa: ASYNC251 - the caller blocks its own event loop
            assert [await runner.end(task) for task in tasks] == ["DONE"] * 20
            assert backend.get_statistics()["workers"] == 2
            assert await runner.run(runner.function(scheduler_address)) == ["DONE"]


async def test_statistics_count_workers_and_threads(on_processes: DaskRunner) -> None:
    statistics = on_processes.backend.get_statistics()
    assert (statistics["workers"], statistics["threads"]) == (2, 4)
    assert statistics["memory_bytes"] > 0
    assert statistics["scheduler"].startswith("tcp://127.0.0.1:")


async def test_unreachable_scheduler_raises_backend_error() -> None:
    import dask
    import distributed  # noqa: F401 - its import would overwrite the setting

    with (
        dask.config.set({"distributed.comm.timeouts.connect": "200ms"}),
        pytest.raises(BackendError, match=r"tcp://127\.0\.0\.1:1\b"),
    ):
        await DaskExecutionBackend(cluster="tcp://127.0.0.1:1")


async def test_unknown_cluster_option_raises_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match="no_such_option"):
        await DaskExecutionBackend({**SMALL, "no_such_option": 1})


def test_script_without_main_guard_raises_with_advice(tmp_path: Path) -> None:
    import distributed

    if tuple(map(int, distributed.__version__.split(".")[:2])) < (2026, 7):
        pytest.skip("before 2026.7, Dask waits for ever for a worker that dies while it starts")
    script = tmp_path / "script.py"
    script.write_text(
        "import asyncio\n"
        "from rhapsody.backends import DaskExecutionBackend\n"
        "async def main():\n"
        "    await DaskExecutionBackend({'n_workers': 1})\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 1
    assert "under `if __name__ == '__main__':`" in done.stderr.splitlines()[-1]


async def test_unstarted_cluster_raises_configuration_error() -> None:
    from distributed import LocalCluster

    cluster = LocalCluster(**SMALL, **HERE, asynchronous=True)
    with pytest.raises(ConfigurationError, match="awaited first"):
        await DaskExecutionBackend(cluster=cluster)
    async with cluster:
        await (await DaskExecutionBackend(cluster=cluster)).shutdown()


async def test_backend_starts_again_after_shutdown() -> None:
    backend = DaskExecutionBackend(SMALL)
    for _ in range(2):
        runner = DaskRunner(backend)
        assert await runner.run(runner.function(scheduler_address)) == ["DONE"]
        await asyncio.gather(backend.shutdown(), backend.shutdown())
        assert backend.get_statistics() == {}
