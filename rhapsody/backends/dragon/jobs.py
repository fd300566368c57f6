"""Jobs of several ranks: Dragon process groups in which each rank is a worker for one call.

So a rank can be told to end with its children, and its outcome arrives like that of any worker. The
environment of a rank has what Dragon's PMI sets for MPI.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Sequence
from typing import Any, Protocol

from rhapsody.allocation import Node
from rhapsody.backends.core.accounts import Account, Capacity
from rhapsody.backends.core.execution import PEAK_MEMORY, Location
from rhapsody.backends.core.fair_queue import FairQueue
from rhapsody.backends.core.reports import TaskReports
from rhapsody.backends.core.work import Work
from rhapsody.backends.dragon import processes
from rhapsody.backends.dragon.ranks import Rank, request_of
from rhapsody.backends.dragon.worker_process import serve
from rhapsody.backends.protocol import EXECUTABLE
from rhapsody.backends.workers.messages import (
    CANCEL,
    DISCONNECTED,
    FIELDS,
    MEMORY,
    NOT_REBUILT,
    RAISED,
    READY,
    RUNNING,
    RUNNING_URGENT,
    STOP,
    VALUE,
    WorkerMessage,
)
from rhapsody.backends.workers.pickling import not_rebuilt
from rhapsody.backends.workers.worker import WorkerSetup
from rhapsody.errors import ResourceError, TaskExecutionError, WorkerDied, as_exception
from rhapsody.gpus import GPUS
from rhapsody.processes import child_environment
from rhapsody.resources import machine_memory

__all__ = ["Jobs", "RankControl"]

CALL_ID = 1
"""Id of the only call of a rank."""

RETRY_KILL_SECONDS = 0.2
"""Time until the next attempt to kill the ranks of a cancelled job that is still starting."""


class RankControl(Protocol):
    """Sets up ranks and sends messages to them. No method blocks."""

    def new_number(self) -> int:
        """Return the number of a new worker; from any thread."""

    def setup(self, number: int) -> WorkerSetup:
        """Return the setup of a new worker."""

    def send_rank_call(self, node: str, number: int, work: Work, rank: int) -> None:
        """Send a rank its only call; `Jobs.on_unsent` is called if that fails."""

    def send_to(self, node: str, number: int, *message: Any) -> None:
        """Send any other message to a worker of a node."""


class _Job:
    """One job, from its submission to its end. Its ranks are known by their worker numbers."""

    def __init__(self, work: Work, ranks: Sequence[Rank]) -> None:
        self.work = work
        self.ranks = ranks  # empty until it starts, if its resources place them
        self.numbers: list[int] = []  # in the order of the ranks
        self.nodes: dict[int, str] = {}  # of the ranks that are ready
        self.outcomes: dict[int, WorkerMessage] = {}
        self.disconnected: set[int] = set()  # ranks that will send no more messages
        self.puids: list[int] = []
        self.exit_codes: list[int | None] | None = None
        self.error: Exception | None = None
        self.cancelled = False


class Jobs:
    """The jobs of one backend: each starts when its resources are free.

    Args:
        nodes: The nodes of the allocation.
        grace: Seconds that the ranks of a cancelled job may take to end before they are killed.
        control: Sets up ranks and sends messages to them.
        reports: Takes reports about tasks.
    """

    def __init__(
        self, nodes: Sequence[Node], grace: float, control: RankControl, reports: TaskReports
    ) -> None:
        self._grace = grace
        self._control = control
        self._reports = reports
        self._loop = asyncio.get_running_loop()
        # Only the memory of this node is known; the nodes of an allocation are mostly alike.
        memory = machine_memory()
        self._account = Account([Capacity(node, memory) for node in nodes])
        self._waiting: dict[Work, _Job] = {}
        self._queue: FairQueue[_Job] = FairQueue(self._account, self._is_gone)
        self._running: dict[Work, _Job] = {}
        self._by_number: dict[int, _Job] = {}
        GPUS.add_listener(self._on_gpus_released)

    def submit(self, work: Work, ranks: Sequence[Rank]) -> None:
        """Take a job.

        Args:
            work: The task.
            ranks: Its ranks; empty if the task is a job by its resources.

        Raises:
            ResourceError: The nodes can never meet its request.
        """
        request, places_ranks = request_of(
            work.options, None if ranks else work.resources, ranks, self._account.cpus
        )
        shortage = self._account.shortage(request)
        if shortage is not None:
            raise ResourceError(work.uid, self._account.lacks(request), shortage)
        job = self._waiting[work] = _Job(work, () if places_ranks else ranks)
        self._queue.add(job, request, work.priority)
        self._start_fitting()

    def _is_gone(self, job: _Job) -> bool:
        return job.work not in self._waiting

    def _on_gpus_released(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._start_fitting)

    def _start_fitting(self) -> None:
        while (entry := self._queue.take()) is not None:
            job, grant = entry
            job.work.grant = grant
            self._start(job)

    def _start(self, job: _Job) -> None:
        del self._waiting[job.work]
        self._running[job.work] = job
        if not job.ranks:
            job.ranks = _placed_ranks(job.work)
        for _ in job.ranks:
            number = self._control.new_number()
            job.numbers.append(number)
            self._by_number[number] = job
        processes.in_thread(self._run, "job", job)

    def cancel(self, work: Work) -> bool:
        """Interrupt a job; its end is reported later. Return False if the job is not here."""
        if self._waiting.pop(work, None) is not None:
            self._reports.report_cancelled(work)
            self._start_fitting()  # others may have waited for it
            return True
        job = self._running.get(work)
        if job is None:
            return False
        job.cancelled = True
        for number, node in job.nodes.items():
            self._control.send_to(node, number, CANCEL, [CALL_ID])
        self._loop.call_later(self._grace, self._kill, job)
        return True

    def _kill(self, job: _Job) -> None:
        if job.work not in self._running:
            return
        if not job.puids:  # still starting
            self._loop.call_later(RETRY_KILL_SECONDS, self._kill, job)
        else:
            for puid in list(job.puids):
                self._loop.run_in_executor(None, processes.kill, puid)

    # -- in the job's thread ----------------------------------------------------------------------

    def _run(self, job: _Job) -> None:
        try:
            job.exit_codes = self._run_group(job)
        except Exception as error:
            job.error = TaskExecutionError(job.work.uid, f"its process group failed: {error}")
        self._loop.call_soon_threadsafe(self._on_group_end, job)

    def _run_group(self, job: _Job) -> list[int | None]:
        from dragon.native.process_group import ProcessGroup

        pmi = job.work.options.get("pmi")
        group = ProcessGroup(restart=False, ignore_error_on_exit=True, pmi=pmi)
        for index in range(len(job.ranks)):
            group.add_process(1, self._template(job, index))
        group.init()
        try:
            group.start()
            job.puids = sorted({*group.puids, *(puid for puid, _ in group.inactive_puids)})
            codes = processes.exit_codes(job.puids)
            return [codes.get(puid) for puid in job.puids]
        finally:
            job.puids = []
            with contextlib.suppress(Exception):
                group.close()

    def _template(self, job: _Job, index: int) -> Any:
        from dragon.infrastructure.policy import Policy
        from dragon.native.process import ProcessTemplate

        rank = job.ranks[index]
        arguments = dict(rank.template)
        cwd = os.fspath(arguments.pop("cwd", None) or os.getcwd())
        if not os.path.isdir(cwd):  # checked on the head node only
            raise FileNotFoundError(f"its working directory does not exist: {cwd!r}")
        numbering = {"RHAPSODY_RANK": str(index), "RHAPSODY_RANKS": str(len(job.ranks))}
        policy = rank.policy
        if policy is None and rank.node is not None:
            policy = Policy(
                placement=Policy.Placement.HOST_NAME,
                host_name=rank.node,
                gpu_affinity=list(rank.gpus),
            )
        return ProcessTemplate(
            serve,
            args=(self._control.setup(job.numbers[index]),),
            cwd=cwd,
            env=child_environment({**(arguments.pop("env", None) or {}), **numbering}),
            policy=policy,
            **arguments,
        )

    # -- on the service loop ----------------------------------------------------------------------

    def on_messages(self, number: int, messages: Sequence[WorkerMessage]) -> bool:
        """Handle messages of a worker; return False if it is not the rank of a job."""
        job = self._by_number.get(number)
        if job is None:
            return False
        for message in messages:
            kind = message[1]
            if kind == READY:
                self._on_ready(job, number, message[3][1])
            elif kind in (RUNNING, RUNNING_URGENT):
                job.work.location = Location(job.nodes.get(job.numbers[0]), None, "job")
                self._reports.report_running(job.work, "jobs")
            elif kind == DISCONNECTED:
                job.disconnected.add(number)
                self._end_if_over(job)
            elif kind != MEMORY:  # which would be of one rank
                job.outcomes[number] = message
        return True

    def _on_ready(self, job: _Job, number: int, node: str) -> None:
        job.nodes[number] = node
        if not job.cancelled:
            self._control.send_rank_call(node, number, job.work, job.numbers.index(number))
        self._control.send_to(node, number, STOP)

    def on_unsent(self, number: int, error: BaseException) -> None:
        """Treat a call that could not be sent to a rank as one that raised the error."""
        if (job := self._by_number.get(number)) is not None:
            job.outcomes[number] = (CALL_ID, RAISED, 0.0, as_exception(error, job.work.uid))

    def on_node_lost(self, node: Node) -> None:
        """Treat all ranks of a node as disconnected: none of their messages can arrive."""
        for job in list(self._running.values()):
            job.disconnected.update(n for n, name in job.nodes.items() if name == node.name)
            self._end_if_over(job)

    def _on_group_end(self, job: _Job) -> None:
        # The last messages of ranks that were ready may still be on their way.
        job.disconnected.update(set(job.numbers) - set(job.nodes))
        if job.exit_codes is None:
            job.disconnected.update(job.numbers)
            job.exit_codes = []
        self._end_if_over(job)

    def _end_if_over(self, job: _Job) -> None:
        if job.exit_codes is None or len(job.disconnected) < len(job.numbers):
            return
        for number in job.numbers:
            self._by_number.pop(number, None)
        del self._running[job.work]
        grant, job.work.grant = job.work.grant, None
        if grant is not None:
            self._account.release(grant)
        self._start_fitting()
        if job.cancelled:
            self._reports.report_cancelled(job.work)
        elif job.error is not None:
            self._reports.report_failed(job.work, job.error)
        else:
            self._reports.report_done(job.work, _result(job))


def _placed_ranks(work: Work) -> list[Rank]:
    """Return the ranks of a job whose resources place them."""
    grant = work.grant
    assert grant is not None
    env = work.resources.env if work.resources is not None else {}
    template = {"env": dict(env)} if env else {}
    return [Rank(place.node.name, place.gpus, template=template) for place in grant.places]


def _result(job: _Job) -> dict[str, Any]:
    """Return the result fields of a job from the outcomes of its ranks."""
    ranks = [_rank_result(job, index) for index in range(len(job.ranks))]
    result: dict[str, Any] = {"ranks": ranks}
    if job.work.kind != EXECUTABLE:
        result["return_value"] = ranks[0].get("return_value")
    elif job.work.task.get("capture_stdio"):
        result |= {stream: ranks[0].get(stream, "") for stream in ("stdout", "stderr")}
    else:
        result |= {
            stream: "".join(rank.get(stream, "") for rank in ranks)
            for stream in ("stdout", "stderr")
        }
    if peaks := [rank.pop(PEAK_MEMORY) for rank in ranks if PEAK_MEMORY in rank]:
        result[PEAK_MEMORY] = max(peaks)
    failed = [rank for rank in ranks if "exception" in rank]
    if job.work.kind == EXECUTABLE:
        result["return_value"] = result["stdout"]
        result["exit_code"] = failed[0]["exit_code"] if failed else 0
    if failed:
        first = failed[0]["exception"]
        result["exception"] = first
        if len(ranks) > 1 and isinstance(first, TaskExecutionError):
            result["exception"] = TaskExecutionError(
                job.work.uid,
                f"{len(failed)} of its {len(ranks)} ranks failed; "
                f"rank {failed[0]['rank']}: {first}",
                failed[0].get("exit_code"),
            )
            result["exception"].__cause__ = first
    return result


def _rank_result(job: _Job, index: int) -> dict[str, Any]:
    codes = job.exit_codes or []
    code = codes[index] if index < len(codes) else None
    rank: dict[str, Any] = {"rank": index, "exit_code": code}
    outcome = job.outcomes.get(job.numbers[index])
    if outcome is None:
        exit_code = "an unknown exit code" if code is None else f"exit code {code}"
        reason = f"rank {index} ended with {exit_code} before it had an outcome"
        return {**rank, "exception": WorkerDied(job.work.uid, reason)}
    _, kind, _, payload = outcome
    if kind == FIELDS:
        return {**rank, **payload}
    if kind == VALUE:
        return {**rank, "return_value": payload}
    if kind == RAISED:
        return {**rank, "exception": payload}
    if kind == NOT_REBUILT:
        return {**rank, "exception": not_rebuilt(job.work.uid, payload)}
    return {**rank, "exception": TaskExecutionError(job.work.uid, f"rank {index} was cancelled")}
