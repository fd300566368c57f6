"""Which cluster a Dask backend uses, and what is left of it afterwards."""

import asyncio
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from rhapsody.api.errors import BackendError, ConfigurationError
from rhapsody.backends import DaskExecutionBackend
from tests.support.on_dask import HERE, SMALL, Runner

pytestmark = pytest.mark.dask


def where() -> str:
    from distributed import get_worker

    return str(get_worker().scheduler.address)


def children() -> set[int]:
    return {
        child.pid
        for child in psutil.Process().children(recursive=True)
        if "resource_tracker" not in " ".join(child.cmdline())
    }


async def test_a_cluster_of_its_own_goes_with_the_backend() -> None:
    before, threads = children(), set(threading.enumerate())
    backend = await DaskExecutionBackend({"n_workers": 2, "threads_per_worker": 1})
    runner = Runner(backend)
    task = runner.function(where)
    assert await runner.run(task) == ["DONE"]
    assert task["return_value"].startswith("tcp://127.0.0.1:")
    assert len(children() - before) == 2
    await backend.shutdown()
    assert children() == before
    left = {t for t in set(threading.enumerate()) - threads if not t.name.startswith("rhapsody")}
    assert {t.name.split("_")[0] for t in left} <= {"Dask-Offload", "asyncio"}


@pytest.mark.parametrize("options", [SMALL, {"n_workers": 1}], ids=["threads", "processes"])
async def test_a_cluster_of_its_own_listens_on_this_machine_only(options: Any) -> None:
    before = set(psutil.Process().net_connections("inet"))
    async with DaskExecutionBackend(options) as backend:
        processes = [psutil.Process(), *map(psutil.Process, children())]
        listening = [
            connection.laddr.ip
            for process in processes
            for connection in set(process.net_connections("inet")) - before
            if connection.status == psutil.CONN_LISTEN
        ]
        assert listening
        assert set(listening) == {"127.0.0.1"}
        assert backend.dashboard_link
        assert "//127.0.0.1:" in backend.dashboard_link


async def test_a_shutdown_does_not_wait_for_what_cannot_be_stopped(
    caplog: pytest.LogCaptureFixture,
) -> None:
    backend = await DaskExecutionBackend({"n_workers": 1, "threads_per_worker": 1})
    runner = Runner(backend)
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
async def test_what_a_sync_caller_gives_is_left_running(kind: str, cluster: Any) -> None:
    from distributed import Client

    with Client(cluster, set_as_default=False) as client:
        given = {
            "cluster": {"cluster": cluster},
            "address": {"cluster": cluster.scheduler_address},
            "client": {"client": client},
        }[kind]
        backend = await DaskExecutionBackend(**given)
        runner = Runner(backend)
        task = runner.function(where)
        assert await runner.run(task) == ["DONE"]
        assert task["return_value"] == cluster.scheduler_address
        await backend.shutdown()
        assert client.status == "running"
        assert client.submit(sum, [1, 2]).result(timeout=30) == 3


@pytest.mark.parametrize("kind", ["cluster", "client"])
async def test_what_an_async_caller_gives_is_left_running(kind: str) -> None:
    from distributed import Client, LocalCluster

    async with (
        LocalCluster(**SMALL, **HERE, asynchronous=True) as cluster,
        Client(cluster, asynchronous=True, set_as_default=False) as client,
    ):
        backend = await DaskExecutionBackend(
            cluster=cluster if kind == "cluster" else None,
            client=client if kind == "client" else None,
        )
        runner = Runner(backend)
        task = runner.function(where)
        assert await runner.run(task) == ["DONE"]
        assert task["return_value"] == cluster.scheduler_address
        await backend.shutdown()
        assert await client.submit(sum, [1, 2]) == 3


async def test_nothing_is_left_on_the_callers_cluster(cluster: Any) -> None:
    def on_scheduler(dask_scheduler: Any) -> Any:
        return (
            len(dask_scheduler.tasks),
            [n for n in dask_scheduler.worker_plugins if n.startswith("rhapsody")],
            [c for c in dask_scheduler.clients if "rhapsody" in c],
        )

    from distributed import Client

    async with DaskExecutionBackend(cluster=cluster) as backend:
        runner = Runner(backend)
        await runner.run(runner.function(where), runner.executable("/bin/echo"))
    with Client(cluster, set_as_default=False) as client:
        assert client.run_on_scheduler(on_scheduler) == (0, [], [])


async def test_callers_own_default_client_stays_the_default(cluster: Any) -> None:
    from distributed import Client, default_client

    with Client(cluster) as client:
        async with DaskExecutionBackend(SMALL):
            assert default_client() is client


async def test_a_blocked_caller_loses_no_heartbeats() -> None:
    import dask
    import distributed  # noqa: F401 - reads its defaults, which would else replace what is set

    # A worker that is silent for as long as this, or for ten of its heartbeats, 5 s, is given up.
    with dask.config.set({"distributed.scheduler.worker-ttl": "1s"}):
        async with DaskExecutionBackend({"n_workers": 2, "threads_per_worker": 1}) as backend:
            runner = Runner(backend)
            tasks = [runner.function(where) for _ in range(20)]
            await runner.submit(*tasks)
            time.sleep(7)  # noqa: ASYNC251 - the caller blocks its own loop
            assert [await runner.end(task) for task in tasks] == ["DONE"] * 20
            assert backend.get_statistics()["workers"] == 2
            assert await runner.run(runner.function(where)) == ["DONE"]


async def test_statistics_tell_workers_and_threads(on_processes: Runner) -> None:
    statistics = on_processes.backend.get_statistics()
    assert (statistics["workers"], statistics["threads"]) == (2, 4)
    assert statistics["memory_bytes"] > 0
    assert statistics["scheduler"].startswith("tcp://127.0.0.1:")


async def test_no_scheduler_at_the_address_is_a_clear_error() -> None:
    import dask
    import distributed  # noqa: F401 - reads its defaults, which would else replace what is set

    with (
        dask.config.set({"distributed.comm.timeouts.connect": "200ms"}),
        pytest.raises(BackendError, match=r"tcp://127\.0\.0\.1:1\b"),
    ):
        await DaskExecutionBackend(cluster="tcp://127.0.0.1:1")


async def test_an_unknown_option_of_the_cluster_is_a_clear_error() -> None:
    with pytest.raises(ConfigurationError, match="no_such_option"):
        await DaskExecutionBackend({**SMALL, "no_such_option": 1})


def test_a_script_without_a_guarded_entry_point_is_told(tmp_path: Path) -> None:
    import distributed

    if tuple(map(int, distributed.__version__.split(".")[:2])) < (2026, 7):
        pytest.skip("this Dask waits for ever for a worker process that dies while it starts")
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


async def test_a_cluster_not_yet_started_is_a_clear_error() -> None:
    from distributed import LocalCluster

    cluster = LocalCluster(**SMALL, **HERE, asynchronous=True)
    with pytest.raises(ConfigurationError, match="awaited first"):
        await DaskExecutionBackend(cluster=cluster)
    async with cluster:
        await (await DaskExecutionBackend(cluster=cluster)).shutdown()


async def test_it_starts_again_after_a_shutdown() -> None:
    backend = DaskExecutionBackend(SMALL)
    for _ in range(2):
        runner = Runner(backend)
        assert await runner.run(runner.function(where)) == ["DONE"]
        await asyncio.gather(backend.shutdown(), backend.shutdown())
        assert backend.get_statistics() == {}
