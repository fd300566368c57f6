"""Jobs of several ranks, with simulated process groups."""

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from rhapsody.allocation import Node
from rhapsody.backends.core.attachment import Attachment, ignore
from rhapsody.backends.core.work import Work
from rhapsody.backends.dragon import jobs as jobs_module
from rhapsody.backends.dragon import processes
from rhapsody.backends.dragon.jobs import CALL_ID, Jobs, _Job
from rhapsody.backends.dragon.ranks import Rank
from rhapsody.backends.workers.messages import (
    CANCEL,
    CANCELED,
    DISCONNECTED,
    FIELDS,
    RAISED,
    READY,
    RUNNING,
    STOP,
    VALUE,
)
from rhapsody.backends.workers.worker import WorkerSetup
from rhapsody.errors import ResourceError, TaskExecutionError, WorkerDied
from rhapsody.gpus import GPUS
from tests.support.waiting import until

NODES = [Node("a", 2, gpus=(0, 1), is_head=True), Node("b", 2, gpus=(0, 1))]


class Control:
    """Records what is sent to ranks; tests end the process groups."""

    def __init__(self) -> None:
        self.last_number = 0
        self.sent: list[tuple[str, int, Any]] = []
        self.calls: list[tuple[str, int, str, int]] = []

    def new_number(self) -> int:
        self.last_number += 1
        return self.last_number

    def setup(self, number: int) -> WorkerSetup:
        return WorkerSetup(number, "run", ())

    def send_rank_call(self, node: str, number: int, work: Work, rank: int) -> None:
        self.calls.append((node, number, work.uid, rank))

    def send_to(self, node: str, number: int, *message: Any) -> None:
        self.sent.append((node, number, message))


class Reports:
    """Records the ends of tasks."""

    def __init__(self) -> None:
        self.running: list[str] = []
        self.ends: dict[str, Any] = {}

    def report_running(self, work: Work, place: str = "") -> None:
        self.running.append(work.uid)

    def report_done(self, work: Work, fields: dict[str, Any]) -> bool:
        self.ends[work.uid] = fields
        return True

    def report_failed(self, work: Work, error: BaseException) -> bool:
        self.ends[work.uid] = error
        return True

    def report_cancelled(self, work: Work) -> bool:
        self.ends[work.uid] = "cancelled"
        return True


class Groups:
    """Simulated process groups, by the uid of the job's task."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self._ended: dict[str, threading.Event] = {}
        self._codes: dict[str, list[int | None] | Exception] = {}

    def run(self, job: _Job) -> list[int | None]:
        uid = job.work.uid
        job.puids = [1000 + number for number in job.numbers]
        ended = self._ended[uid] = threading.Event()
        self.started.append(uid)
        ended.wait(30)
        job.puids = []
        codes = self._codes.get(uid, [0] * len(job.ranks))
        if isinstance(codes, Exception):
            raise codes
        return codes

    def end(self, uid: str, codes: list[int | None] | Exception | None = None) -> None:
        if codes is not None:
            self._codes[uid] = codes
        self._ended[uid].set()

    def end_all(self) -> None:
        for ended in self._ended.values():
            ended.set()


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> Groups:
    groups = Groups()
    monkeypatch.setattr(Jobs, "_run_group", lambda jobs, job: groups.run(job))
    return groups


class Simulation:
    """The jobs of a backend, whose ranks are simulated."""

    def __init__(self, groups: Groups) -> None:
        self.groups = groups
        self.control, self.reports = Control(), Reports()
        self.jobs = Jobs(NODES, 0.05, self.control, self.reports)
        self._attachment = Attachment(ignore)

    def submit(self, uid: str, *ranks: Rank, **task: Any) -> Work:
        work = Work({"uid": uid, **(task or {"function": print})}, self._attachment, "")
        given = ranks or ([] if "resources" in task else [Rank("a"), Rank("b")])
        self.jobs.submit(work, given)
        return work

    async def start(self, uid: str) -> None:
        await until(lambda: uid in self.groups.started)

    def ready(self, number: int, node: str) -> None:
        assert self.jobs.on_messages(number, [(number, READY, 0.0, (1000 + number, node))])

    def outcome(self, number: int, kind: int, payload: Any) -> None:
        messages = [
            (CALL_ID, RUNNING, 0.0, b""),
            (CALL_ID, kind, 0.1, payload),
            (0, DISCONNECTED, 0.0, b""),
        ]
        assert self.jobs.on_messages(number, messages)

    async def end(self, uid: str, codes: list[int | None] | Exception | None = None) -> Any:
        self.groups.end(uid, codes)
        await until(lambda: uid in self.reports.ends)
        return self.reports.ends[uid]


@pytest_asyncio.fixture
async def simulation(groups: Groups) -> AsyncIterator[Simulation]:
    yield Simulation(groups)

    def no_thread_is_left() -> bool:
        groups.end_all()
        return not any(t.name == "rhapsody-dragon-job" for t in threading.enumerate())

    await until(no_thread_is_left)


async def test_ready_rank_gets_its_call_and_a_stop_message(simulation: Simulation) -> None:
    simulation.submit("job")
    await simulation.start("job")
    simulation.ready(1, "a")
    simulation.ready(2, "b")
    assert simulation.control.calls == [("a", 1, "job", 0), ("b", 2, "job", 1)]
    assert simulation.control.sent == [("a", 1, (STOP,)), ("b", 2, (STOP,))]


async def test_function_returns_the_result_of_rank_0(simulation: Simulation) -> None:
    simulation.submit("job")
    await simulation.start("job")
    for number, node in ((2, "b"), (1, "a")):
        simulation.ready(number, node)
        simulation.outcome(number, VALUE, f"value of {number}")
    assert simulation.reports.running == ["job", "job"]
    assert await simulation.end("job") == {
        "return_value": "value of 1",
        "ranks": [
            {"rank": 0, "exit_code": 0, "return_value": "value of 1"},
            {"rank": 1, "exit_code": 0, "return_value": "value of 2"},
        ],
    }


async def test_executable_returns_the_output_of_all_ranks(simulation: Simulation) -> None:
    simulation.submit("job", executable="true")
    await simulation.start("job")
    for number, node in ((1, "a"), (2, "b")):
        simulation.ready(number, node)
        fields = {"stdout": f"{number}\n", "stderr": "", "exit_code": 0}
        simulation.outcome(number, FIELDS, fields)
    fields = await simulation.end("job")
    assert (fields["stdout"], fields["return_value"], fields["exit_code"]) == ("1\n2\n",) * 2 + (0,)
    assert "exception" not in fields


async def test_failed_rank_fails_the_job(simulation: Simulation) -> None:
    simulation.submit("job", executable="false")
    await simulation.start("job")
    simulation.ready(1, "a")
    simulation.outcome(1, FIELDS, {"stdout": "", "stderr": "", "exit_code": 0})
    simulation.ready(2, "b")
    failure = {
        "stdout": "",
        "stderr": "no",
        "exit_code": 3,
        "exception": TaskExecutionError("job", "no", 3),
    }
    simulation.outcome(2, FIELDS, failure)
    fields = await simulation.end("job")
    assert fields["exit_code"] == 3
    assert "1 of its 2 ranks failed; rank 1: " in str(fields["exception"])


async def test_exception_of_a_rank_fails_the_job(simulation: Simulation) -> None:
    simulation.submit("job")
    await simulation.start("job")
    simulation.ready(1, "a")
    simulation.outcome(1, VALUE, 1)
    simulation.ready(2, "b")
    error = LookupError("nowhere")
    simulation.outcome(2, RAISED, error)
    assert (await simulation.end("job"))["exception"] is error


@pytest.mark.parametrize(
    ("code", "description"),
    [(5, "rank 0 ended with exit code 5"), (None, "rank 0 ended with an unknown exit code")],
)
async def test_dead_rank_fails_the_job(
    simulation: Simulation, code: int | None, description: str
) -> None:
    simulation.submit("job", Rank("a"))
    await simulation.start("job")
    simulation.ready(1, "a")
    simulation.jobs.on_messages(1, [(0, DISCONNECTED, 0.0, b"")])
    fields = await simulation.end("job", [code])
    assert isinstance(fields["exception"], WorkerDied)
    assert description in str(fields["exception"])


async def test_failed_process_group_is_an_error(simulation: Simulation) -> None:
    simulation.submit("job")
    await simulation.start("job")
    error = await simulation.end("job", RuntimeError("no such node"))
    assert isinstance(error, TaskExecutionError)
    assert "its process group failed: no such node" in str(error)


async def test_unsent_call_fails_the_job(simulation: Simulation) -> None:
    error = TypeError("not picklable")
    simulation.submit("job", Rank("a"))
    await simulation.start("job")
    simulation.ready(1, "a")
    simulation.jobs.on_unsent(1, error)
    simulation.jobs.on_messages(1, [(0, DISCONNECTED, 0.0, b"")])
    assert (await simulation.end("job"))["exception"] is error


async def test_messages_of_other_workers_are_left_to_the_scheduler(simulation: Simulation) -> None:
    assert not simulation.jobs.on_messages(99, [(1, VALUE, 0.0, None)])


async def test_job_without_free_cpus_waits_and_smaller_ones_overtake(
    simulation: Simulation,
) -> None:
    simulation.submit("three", *[Rank("a")] * 3)
    simulation.submit("two", *[Rank("b")] * 2)
    simulation.submit("one", Rank("b"))
    await simulation.start("three")
    await simulation.start("one")
    assert sorted(simulation.groups.started) == ["one", "three"]
    await simulation.end("three")
    await simulation.start("two")


async def test_job_of_high_priority_starts_first(simulation: Simulation) -> None:
    simulation.submit("running", *[Rank("a")] * 4)
    simulation.submit("normal", *[Rank("a")] * 4)
    simulation.submit("urgent", *[Rank("a")] * 4, priority=1)
    await simulation.start("running")
    await simulation.end("running")
    await simulation.start("urgent")
    assert simulation.groups.started == ["running", "urgent"]


async def test_job_that_can_never_fit_is_refused(simulation: Simulation) -> None:
    with pytest.raises(ResourceError, match="it asks for 1 CPU and 3 GPUs; a has 2 CPUs, 2 GPUs"):
        simulation.submit("large", resources={"gpus": 3})


async def test_resources_place_the_ranks(simulation: Simulation) -> None:
    asked = {"ranks": 2, "cpus": 2, "gpus": 1, "env": {"MODE": "fast"}}
    work = simulation.submit("job", resources=asked)
    await simulation.start("job")
    ranks = simulation.jobs._running[work].ranks
    assert [rank.node for rank in ranks] == ["a", "b"]
    assert [len(rank.gpus) for rank in ranks] == [1, 1]
    assert ranks[0].template == {"env": {"MODE": "fast"}}


async def test_job_waits_for_gpus_of_a_replica(simulation: Simulation) -> None:
    used = [(node.name, gpu) for node in NODES for gpu in node.gpus]
    assert GPUS.take(used)
    simulation.submit("job", resources={"gpus": 0.5})
    assert simulation.groups.started == []
    GPUS.release(used)
    await simulation.start("job")


async def test_job_with_more_ranks_than_cpus_runs_alone(simulation: Simulation) -> None:
    simulation.submit("large", *[Rank("a")] * 10)
    simulation.submit("small", Rank("a"))
    await simulation.start("large")
    assert simulation.groups.started == ["large"]
    await simulation.end("large")
    await simulation.start("small")


async def test_jobs_share_no_gpu(simulation: Simulation) -> None:
    simulation.submit("first", resources={"gpus": 2, "nodes": ["a"]})
    simulation.submit("second", resources={"gpus": 1, "nodes": ["a"]})
    await simulation.start("first")
    assert simulation.groups.started == ["first"]
    await simulation.end("first")
    await simulation.start("second")


async def test_waiting_job_is_cancelled_before_its_start(simulation: Simulation) -> None:
    simulation.submit("first", *[Rank("a")] * 4)
    waiting = simulation.submit("second", *[Rank("a")] * 4)
    await simulation.start("first")
    assert simulation.jobs.cancel(waiting)
    assert simulation.reports.ends["second"] == "cancelled"
    await simulation.end("first")
    assert simulation.groups.started == ["first"]
    assert not simulation.jobs.cancel(waiting)


async def test_ranks_of_a_cancelled_job_are_notified_and_its_end_is_reported(
    simulation: Simulation,
) -> None:
    job = simulation.submit("job", Rank("a"))
    await simulation.start("job")
    simulation.ready(1, "a")
    simulation.control.sent.clear()
    assert simulation.jobs.cancel(job)
    assert simulation.control.sent == [("a", 1, (CANCEL, [CALL_ID]))]
    simulation.outcome(1, CANCELED, b"")
    assert await simulation.end("job") == "cancelled"


async def test_ranks_outlasting_the_grace_are_killed(
    simulation: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[int] = []

    def kill(puid: int) -> None:
        killed.append(puid)
        if len(killed) == 2:
            simulation.groups.end("job", [-9, -9])

    monkeypatch.setattr(processes, "kill", kill)
    job = simulation.submit("job")
    await simulation.start("job")
    simulation.jobs.cancel(job)
    await until(lambda: "job" in simulation.reports.ends)
    assert sorted(killed) == [1001, 1002]
    assert simulation.reports.ends["job"] == "cancelled"


async def test_job_cancelled_during_start_is_killed_afterwards(
    simulation: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, killed = threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def run_group(jobs: Jobs, job: _Job) -> list[int | None]:
        started.wait(30)
        return simulation.groups.run(job)

    def kill(puid: int) -> None:
        loop.call_soon_threadsafe(killed.set)
        simulation.groups.end("job", [-9])

    monkeypatch.setattr(Jobs, "_run_group", run_group)
    monkeypatch.setattr(processes, "kill", kill)
    monkeypatch.setattr(jobs_module, "RETRY_KILL_SECONDS", 0.01)
    job = simulation.submit("job", Rank("a"))
    simulation.jobs.cancel(job)
    started.set()
    await asyncio.wait_for(killed.wait(), 20)
    await until(lambda: "job" in simulation.reports.ends)


async def test_lost_node_ends_the_ranks_on_it(simulation: Simulation) -> None:
    simulation.submit("job")
    await simulation.start("job")
    simulation.ready(1, "a")
    simulation.outcome(1, VALUE, 1)
    simulation.ready(2, "b")
    simulation.jobs.on_node_lost(NODES[1])
    fields = await simulation.end("job", [0, -9])
    assert isinstance(fields["exception"], TaskExecutionError)
    assert "rank 1 ended with exit code -9" in str(fields["exception"])
