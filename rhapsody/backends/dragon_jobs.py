"""Jobs of several ranks: Dragon process groups, in which each rank is a worker for one call.

So a rank ends with its children when it is told to, and its outcome comes by way of its host's
hub. MPI finds in its environment what Dragon's PMI put there.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

from rhapsody.api.errors import TaskExecutionError, WorkerDied
from rhapsody.backends import dragon_processes
from rhapsody.backends import dragon_wire as wire
from rhapsody.backends.dragon_ranks import Rank
from rhapsody.backends.dragon_roles import JobCrew, Reports
from rhapsody.backends.dragon_runtime import Host
from rhapsody.backends.dragon_worker import serve
from rhapsody.backends.protocol import EXECUTABLE
from rhapsody.backends.work import Work
from rhapsody.processes import child_environment

__all__ = ["Jobs"]


class _Job:
    """One job, from its submission to its end."""

    def __init__(self, work: Work, ranks: Sequence[Rank]) -> None:
        self.work = work
        self.ranks = ranks
        self.numbers: list[int] = []  # of the ranks, among the workers
        self.hosts: dict[int, str] = {}  # of those that are there, by number
        self.notes: dict[int, wire.Note] = {}  # outcomes, by number
        self.silent: set[int] = set()  # numbers of those that will say no more
        self.puids: list[int] = []
        self.codes: list[int | None] | None = None
        self.error: Exception | None = None
        self.cancelled = False


class Jobs:
    """The jobs of one backend: those that fit side by side run, the others wait in order.

    Args:
        hosts: The allocation.
        grace: Seconds that the ranks of a cancelled job may take to end before they are killed.
        crew: Speaks to ranks.
        reports: Hears what becomes of tasks.
    """

    def __init__(
        self, hosts: Sequence[Host], grace: float, crew: JobCrew, reports: Reports
    ) -> None:
        self._grace = grace
        self._crew = crew
        self._reports = reports
        self._loop = asyncio.get_running_loop()
        self._cpus = sum(host.cpus for host in hosts)
        self._busy_gpus: set[tuple[str | None, int]] = set()
        self._busy_ranks = 0
        self._waiting: dict[Work, _Job] = {}
        self._order: deque[_Job] = deque()
        self._running: dict[Work, _Job] = {}
        self._by_number: dict[int, _Job] = {}

    def submit(self, work: Work, ranks: Sequence[Rank]) -> None:
        """Take a job."""
        job = self._waiting[work] = _Job(work, ranks)
        self._order.append(job)
        self._start_what_fits()

    def _start_what_fits(self) -> None:
        # In order: a large one that waits is not overtaken for ever.
        while self._order:
            job = self._order[0]
            if job.work in self._waiting:
                if not self._fits(job):
                    return
                self._start(job)
            self._order.popleft()

    def _fits(self, job: _Job) -> bool:
        if self._busy_gpus & _gpus(job):
            return False
        return not self._busy_ranks or self._busy_ranks + len(job.ranks) <= self._cpus

    def _start(self, job: _Job) -> None:
        del self._waiting[job.work]
        self._running[job.work] = job
        self._busy_ranks += len(job.ranks)
        self._busy_gpus |= _gpus(job)
        for _ in job.ranks:
            number = self._crew.number()
            job.numbers.append(number)
            self._by_number[number] = job
        threading.Thread(
            target=self._run, args=(job,), name="rhapsody-dragon-job", daemon=True
        ).start()

    def cancel(self, work: Work) -> bool:
        """End a job; False where it is none of these."""
        if self._waiting.pop(work, None) is not None:
            self._reports.cancelled(work)
            return True
        job = self._running.get(work)
        if job is None:
            return False
        job.cancelled = True
        for number, host in job.hosts.items():
            self._crew.post(host, number, wire.CANCEL, [1])
        self._loop.call_later(self._grace, self._insist, job)
        return True

    def _insist(self, job: _Job) -> None:
        if job.work not in self._running:
            return
        if not job.puids:  # still starting
            self._loop.call_later(0.2, self._insist, job)
        else:
            for puid in list(job.puids):
                self._loop.run_in_executor(None, dragon_processes.kill, puid)

    # -- in the job's thread ----------------------------------------------------------------------

    def _run(self, job: _Job) -> None:
        try:
            job.codes = self._run_group(job)
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
            codes = _codes(job.puids)
            return [codes.get(puid) for puid in job.puids]
        finally:
            job.puids = []
            with contextlib.suppress(Exception):
                group.close()

    def _template(self, job: _Job, index: int) -> Any:
        from dragon.infrastructure.policy import Policy
        from dragon.native.process import ProcessTemplate

        rank = job.ranks[index]
        given = dict(rank.template)
        cwd = os.fspath(given.pop("cwd", None) or os.getcwd())
        if not os.path.isdir(cwd):  # on this host, which is where it can be seen
            raise FileNotFoundError(f"its working directory does not exist: {cwd!r}")
        numbered = {"RHAPSODY_RANK": str(index), "RHAPSODY_RANKS": str(len(job.ranks))}
        policy = rank.policy
        if policy is None and rank.host is not None:
            policy = Policy(
                placement=Policy.Placement.HOST_NAME,
                host_name=rank.host,
                gpu_affinity=list(rank.gpus),
            )
        return ProcessTemplate(
            serve,
            args=(self._crew.setup(job.numbers[index]),),
            cwd=cwd,
            env=child_environment({**(given.pop("env", None) or {}), **numbered}),
            policy=policy,
            **given,
        )

    # -- on the service loop ----------------------------------------------------------------------

    def on_notes(self, number: int, notes: Sequence[wire.Note]) -> bool:
        """Take in notes of a rank; False where it is none of a job's."""
        job = self._by_number.get(number)
        if job is None:
            return False
        for note in notes:
            if note[1] == wire.HELLO:
                self._on_hello(job, number, note[3][1])
            elif note[1] in (wire.BEGUN, wire.BEGUN_URGENTLY):
                self._reports.running(job.work, "jobs")
            elif note[1] == wire.GONE:
                job.silent.add(number)
                self._end_if_over(job)
            else:
                job.notes[number] = note
        return True

    def _on_hello(self, job: _Job, number: int, host: str) -> None:
        job.hosts[number] = host
        if not job.cancelled:
            try:
                self._crew.post_alone(host, number, job.work, job.numbers.index(number))
            except Exception as error:
                job.notes[number] = (1, wire.RAISED, 0.0, error)
        self._crew.post(host, number, wire.STOP)

    def on_host_lost(self, host: Host) -> None:
        """Take in that nothing more will be heard from the ranks on a host."""
        for job in list(self._running.values()):
            job.silent.update(n for n, name in job.hosts.items() if name == host.name)
            self._end_if_over(job)

    def _on_group_end(self, job: _Job) -> None:
        # The last notes of ranks that were there may still be under way.
        job.silent.update(set(job.numbers) - set(job.hosts))
        if job.codes is None:
            job.silent.update(job.numbers)
            job.codes = []
        self._end_if_over(job)

    def _end_if_over(self, job: _Job) -> None:
        if job.codes is None or len(job.silent) < len(job.numbers):
            return
        for number in job.numbers:
            self._by_number.pop(number, None)
        del self._running[job.work]
        self._busy_ranks -= len(job.ranks)
        self._busy_gpus -= _gpus(job)
        self._start_what_fits()
        if job.cancelled:
            self._reports.cancelled(job.work)
        elif job.error is not None:
            self._reports.failed(job.work, job.error)
        else:
            self._reports.done(job.work, _result(job))


def _gpus(job: _Job) -> set[tuple[str | None, int]]:
    return {(rank.host, gpu) for rank in job.ranks for gpu in rank.gpus}


def _codes(puids: Sequence[int]) -> dict[int, int]:
    """Wait for processes to end and return their exit codes."""
    from dragon.globalservices.process import multi_join

    codes: dict[int, int] = {}
    while left := [puid for puid in puids if puid not in codes]:
        codes.update(multi_join(left)[0] or ())
    return codes


def _result(job: _Job) -> dict[str, Any]:
    ranks = [_result_of_rank(job, index) for index in range(len(job.ranks))]
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
    bad = [rank for rank in ranks if "exception" in rank]
    if job.work.kind == EXECUTABLE:
        result["return_value"] = result["stdout"]
        result["exit_code"] = bad[0]["exit_code"] if bad else 0
    if bad:
        first = bad[0]["exception"]
        result["exception"] = first
        if len(ranks) > 1 and isinstance(first, TaskExecutionError):
            result["exception"] = TaskExecutionError(
                job.work.uid,
                f"{len(bad)} of its {len(ranks)} ranks failed; rank {bad[0]['rank']}: {first}",
                bad[0].get("exit_code"),
            )
            result["exception"].__cause__ = first
    return result


def _result_of_rank(job: _Job, index: int) -> dict[str, Any]:
    codes = job.codes or []
    code = codes[index] if index < len(codes) else None
    rank: dict[str, Any] = {"rank": index, "exit_code": code}
    note = job.notes.get(job.numbers[index])
    if note is None:
        how = f"with exit code {code}" if code is not None else "somehow"
        reason = f"rank {index} ended {how} before it had an outcome"
        return {**rank, "exception": WorkerDied(job.work.uid, reason)}
    _, word, _, payload = note
    if word == wire.FIELDS:
        return {**rank, **payload}
    if word == wire.VALUE:
        return {**rank, "return_value": payload}
    if word == wire.RAISED:
        return {**rank, "exception": payload}
    return {**rank, "exception": TaskExecutionError(job.work.uid, f"rank {index} was cancelled")}
