import asyncio
import os
import signal
import subprocess
import sys

import pytest

from rhapsody import processes
from rhapsody.processes import (
    GROUP,
    SECRET_VARIABLES,
    child_environment,
    ending_group,
    group_exists,
    has_secrets,
    wait_measured,
    watch_exit,
)
from tests.support.processes import wait_gone


def test_child_environment_has_no_secrets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for variable in SECRET_VARIABLES:
        monkeypatch.setenv(variable, "secret")
    expected = {k: v for k, v in os.environ.items() if k not in SECRET_VARIABLES}
    assert child_environment() == expected


def test_child_environment_sets_and_removes_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMOVED", "1")
    environment = child_environment({"REMOVED": None, "ABSENT": None, "NUMBER": "4"})
    assert "REMOVED" not in environment
    assert environment["NUMBER"] == "4"


def test_child_environment_keeps_a_secret_set_by_the_user() -> None:
    assert child_environment({"RHAPSODY_API_KEY": "mine"})["RHAPSODY_API_KEY"] == "mine"


def test_has_secrets_finds_each_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in SECRET_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    assert not has_secrets()
    for variable in SECRET_VARIABLES:
        with monkeypatch.context() as patch:
            patch.setenv(variable, "secret")
            assert has_secrets()


def test_ending_group_terminates_first() -> None:
    with subprocess.Popen(["sleep", "60"], **GROUP) as child, ending_group(child.pid) as grace:
        assert child.wait(20) == -signal.SIGTERM
    assert grace == processes.GRACE_SECONDS
    assert not group_exists(child.pid)


def test_ending_group_kills_members_ignoring_sigterm() -> None:
    script = "trap '' TERM; sleep 60 & echo $!; exit"
    with subprocess.Popen(["/bin/sh", "-c", script], stdout=subprocess.PIPE, **GROUP) as child:
        assert child.stdout is not None
        grandchild = int(child.stdout.readline())
        with ending_group(child.pid):
            child.wait(20)
    assert wait_gone(grandchild) == []


def test_ending_group_of_an_ended_process_does_nothing() -> None:
    with subprocess.Popen([sys.executable, "-c", ""], **GROUP) as child:
        child.wait(20)
        with ending_group(child.pid):
            pass


@pytest.mark.parametrize("pidfd", [True, False])
async def test_exit_of_a_child_is_reported(pidfd: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not pidfd:
        monkeypatch.delattr(os, "pidfd_open", raising=False)
    exited = asyncio.Event()
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    watch_exit(process, exited.set)
    await asyncio.wait_for(exited.wait(), 20)
    assert process.returncode == 3


@pytest.mark.parametrize("program", ["true", "false"])
def test_child_smaller_than_this_program_cannot_be_measured(program: str) -> None:
    with subprocess.Popen([program]) as process:
        assert wait_measured(process) is None
    assert process.returncode == (program == "false")


def test_child_that_another_caller_waited_for_cannot_be_measured() -> None:
    with subprocess.Popen(["true"]) as process:
        os.waitpid(process.pid, 0)
        assert wait_measured(process) is None
