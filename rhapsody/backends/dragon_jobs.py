"""Jobs of several ranks as Dragon process groups, a thread for each while it runs."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

from rhapsody.api.errors import TaskExecutionError
from rhapsody.backends import dragon_wire as wire
from rhapsody.backends.dragon_ranks import Rank
from rhapsody.backends.dragon_runtime import Host
from rhapsody.backends.dragon_worker import serve
from rhapsody.backends.protocol import EXECUTABLE
from rhapsody.backends.work import Work
from rhapsody.processes import child_environment

__all__ = ["Jobs"]

GRACE_SECONDS = 1.0
"""Time between SIGTERM and SIGKILL when a job is ended."""

OUTPUT_SECONDS = 10.0
"""How long the last output of a rank that has ended may take to come."""


class _Job:
    """One job, from its submission to its end."""

    def __init__(self, work: Work, ranks: Sequence[Rank]) -> None:
        self.work = work
        self.ranks = ranks
        self.group: Any = None
        self.cancelled = False
        self.numbers: dict[int, int] = {}  # of function ranks among the workers
        self.results: dict[int, wire.Note] = {}


class Jobs:
    """The jobs of one backend: those that fit side by side run, the others wait in order.

    Args:
        hosts: The allocation.
        crew: Speaks to ranks that run functions, which are workers for one call.
        reports: See `dragon_pool.Reports`.
    """

    def __init__(self, hosts: Sequence[Host], crew: Any, reports: Any) -> None:
        self._crew = crew
        self._reports = reports
        self._loop = asyncio.get_running_loop()
        self._cpus = sum(host.cpus for host in hosts)
        self._busy_gpus: set[tuple[str | None, int]] = set()
        self._busy_ranks = 0
        self._waiting: deque[_Job] = deque()
        self._running: dict[Work, _Job] = {}
        self._by_number: dict[int, _Job] = {}

    def submit(self, work: Work, ranks: Sequence[Rank]) -> None:
        """Take a job."""
        self._waiting.append(_Job(work, ranks))
        self._start_what_fits()

    def _start_what_fits(self) -> None:
        # In order: a large one that waits is not overtaken for ever.
        while self._waiting and self._fits(self._waiting[0]):
            job = self._waiting.popleft()
            self._busy_ranks += len(job.ranks)
            self._busy_gpus |= _gpus(job)
            self._running[job.work] = job
            threading.Thread(
                target=self._run, args=(job,), name="rhapsody-dragon-job", daemon=True
            ).start()

    def _fits(self, job: _Job) -> bool:
        if self._busy_gpus & _gpus(job):
            return False
        return not self._busy_ranks or self._busy_ranks + len(job.ranks) <= self._cpus

    def cancel(self, work: Work) -> bool:
        """End a job; False where it is none of these."""
        for job in self._waiting:
            if job.work is work:
                self._waiting.remove(job)
                self._reports.cancelled(work)
                return True
        job = self._running.get(work)  # type: ignore[assignment]
        if job is None:
            return False
        job.cancelled = True
        threading.Thread(target=_end, args=(job,), name="rhapsody-dragon-end", daemon=True).start()
        return True

    # -- in the job's thread ----------------------------------------------------------------------

    def _run(self, job: _Job) -> None:
        try:
            fields = self._run_group(job)
        except Exception as error:
            reason = TaskExecutionError(job.work.uid, f"its process group failed: {error}")
            self._loop.call_soon_threadsafe(self._ended, job, {"exception": reason})
        else:
            self._loop.call_soon_threadsafe(self._ended, job, fields)

    def _run_group(self, job: _Job) -> dict[str, Any]:
        from dragon.native.process_group import ProcessGroup

        work = job.work
        group = ProcessGroup(
            restart=False, ignore_error_on_exit=True, pmi=work.options.get("pmi") or None
        )
        for index in range(len(job.ranks)):
            group.add_process(1, self._template(job, index))
        group.init()
        try:
            job.group = group
            if not job.cancelled:
                group.start()
                self._loop.call_soon_threadsafe(self._reports.running, work)
                return self._outcome(job, group)
            return {}
        finally:
            job.group = None
            with contextlib.suppress(Exception):
                group.close()

    def _template(self, job: _Job, index: int) -> Any:
        from dragon.infrastructure.policy import Policy
        from dragon.native.process import Popen, ProcessTemplate

        rank, task = job.ranks[index], job.work.task
        given = dict(rank.template)
        options = job.work.options
        environment = child_environment(
            {
                **(options.get("env") or {}),
                **(given.pop("env", None) or {}),
                "RHAPSODY_RANK": str(index),
                "RHAPSODY_RANKS": str(len(job.ranks)),
            }
        )
        policy = rank.policy
        if policy is None and rank.host is not None:
            policy = Policy(
                placement=Policy.Placement.HOST_NAME,
                host_name=rank.host,
                gpu_affinity=list(rank.gpus),
            )
        common = {
            "cwd": os.fspath(given.pop("cwd", None) or options.get("cwd") or os.getcwd()),
            "env": environment,
            "policy": policy,
            **given,
        }
        if job.work.kind != EXECUTABLE:
            number = self._crew.number()
            self._crew.expect(number, 3)  # hello, the outcome, the end
            job.numbers[number] = index
            self._by_number[number] = job
            return ProcessTemplate(serve, args=(self._crew.setup(number),), **common)
        program, *arguments = _command(task, options)
        return ProcessTemplate(
            program, args=arguments, **{"stdout": Popen.PIPE, "stderr": Popen.PIPE, **common}
        )

    def _outcome(self, job: _Job, group: Any) -> dict[str, Any]:
        puids = sorted({*group.puids, *(puid for puid, _ in group.inactive_puids)})
        readers = [_Reader(puid) for puid in puids] if job.work.kind == EXECUTABLE else []
        group.join()
        codes = dict(group.inactive_puids)
        ranks: list[dict[str, Any]] = [
            {"rank": index, "exit_code": codes.get(puid)} for index, puid in enumerate(puids)
        ]
        for rank, reader in zip(ranks, readers, strict=False):
            rank["stdout"], rank["stderr"] = reader.read()
        return {"ranks": ranks}

    # -- on the service loop ----------------------------------------------------------------------

    def on_notes(self, number: int, notes: Sequence[wire.Note]) -> bool:
        """Take in notes of a rank; False where it is none of a job's."""
        job = self._by_number.get(number)
        if job is None:
            return False
        for note in notes:
            if note[1] == wire.HELLO:
                rank, (_, host) = job.numbers[number], note[3]
                try:
                    self._crew.post_alone(host, number, job.work, str(rank))
                except Exception as error:
                    job.results[rank] = (0, wire.RAISED, 0.0, error)
                    self._crew.tell_to_stop(host, number)
            elif note[1] in (wire.VALUE, wire.RAISED):
                job.results[job.numbers[number]] = note
            elif note[1] == wire.GONE:
                del self._by_number[number]
        return True

    def _ended(self, job: _Job, fields: dict[str, Any]) -> None:
        # The last notes of function ranks may still be under way.
        if "ranks" in fields and any(number in self._by_number for number in job.numbers):
            self._loop.call_later(0.01, self._ended, job, fields)
            return
        for number in job.numbers:
            self._by_number.pop(number, None)
            self._crew.forget(number)
        del self._running[job.work]
        self._busy_ranks -= len(job.ranks)
        self._busy_gpus -= _gpus(job)
        self._start_what_fits()
        if job.cancelled:
            self._reports.cancelled(job.work)
        else:
            self._reports.done(job.work, _result(job, fields))


class _Reader:
    """Takes in what a rank writes, in threads, since a full pipe would stop it."""

    def __init__(self, puid: int) -> None:
        from dragon.native.process import Process

        process = Process(None, ident=puid)
        self._parts: list[list[str]] = [[], []]
        self._threads = []
        for parts, connection in zip(
            self._parts, (process.stdout_conn, process.stderr_conn), strict=True
        ):
            if connection is not None:
                read = functools.partial(_read_all, connection, parts)
                thread = threading.Thread(target=read, name="rhapsody-dragon-read", daemon=True)
                self._threads.append(thread)
                thread.start()

    def read(self) -> tuple[str, str]:
        """Return all of it, once the rank has ended."""
        for thread in self._threads:
            thread.join(OUTPUT_SECONDS)
        out, err = ("".join(parts) for parts in self._parts)
        return out, err


def _read_all(connection: Any, parts: list[str]) -> None:
    with contextlib.suppress(EOFError, OSError):
        while True:
            part = connection.recv()
            parts.append(part if isinstance(part, str) else part.decode("utf-8", "replace"))


def _gpus(job: _Job) -> set[tuple[str | None, int]]:
    return {(rank.host, gpu) for rank in job.ranks for gpu in rank.gpus}


def _command(task: Any, options: Any) -> list[str]:
    command = [os.fspath(task["executable"]), *map(str, task.get("arguments") or ())]
    return ["/bin/sh", "-c", " ".join(command)] if options.get("shell") else command


def _end(job: _Job) -> None:
    group = job.group
    if group is None:
        return  # it looks at `cancelled` before it starts
    with contextlib.suppress(Exception):  # it has ended by itself
        group.send_signal(signal.SIGTERM, hide_stderr=True)
        if job.work.kind == EXECUTABLE:
            threading.Event().wait(GRACE_SECONDS)
        group.kill(hide_stderr=True)


def _result(job: _Job, fields: dict[str, Any]) -> dict[str, Any]:
    if "ranks" not in fields:
        error = fields["exception"]
        return {**fields, "stderr": str(error)}
    ranks, uid = fields["ranks"], job.work.uid
    bad = [rank for rank in ranks if rank["exit_code"] != 0]
    if job.work.kind == EXECUTABLE:
        outputs = {
            stream: "".join(rank[stream] for rank in ranks) for stream in ("stdout", "stderr")
        }
        result = {**fields, **outputs, "return_value": outputs["stdout"], "exit_code": 0}
        if bad:
            said = next((rank["stderr"].strip() for rank in bad if rank["stderr"].strip()), "")
            result["exit_code"] = bad[0]["exit_code"]
            result["exception"] = TaskExecutionError(
                uid,
                f"{len(bad)} of its {len(ranks)} ranks failed, rank {bad[0]['rank']} first"
                f"{': ' + said[-2000:] if said else ''}",
                bad[0]["exit_code"],
            )
        return result
    for index, rank in enumerate(ranks):
        note = job.results.get(index)
        if note is not None and note[1] == wire.VALUE:
            rank["return_value"] = note[3]
        else:
            code = rank["exit_code"]
            rank["exception"] = (
                note[3]
                if note is not None
                else TaskExecutionError(uid, f"rank {index} ended before it returned", code)
            )
    failed = [rank["exception"] for rank in ranks if "exception" in rank]
    if failed:
        return {**fields, "exception": failed[0], "stderr": str(failed[0])}
    return {**fields, "return_value": ranks[0]["return_value"]}
