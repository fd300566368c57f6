import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from rhapsody.backends.executables.guard import GuardedGroups
from rhapsody.processes import GROUP
from tests.support.processes import wait_gone

GUARDING = """
import os, subprocess, time
from rhapsody.backends.executables.guard import GuardedGroups

groups = GuardedGroups()
with groups.starting():
    child = subprocess.Popen(["sleep", "60"], start_new_session=True)
    groups.add(child.pid)
"""


def test_close_kills_remaining_groups() -> None:
    kept = subprocess.Popen(["sleep", "60"], **GROUP)
    removed = subprocess.Popen(["sleep", "60"], **GROUP)
    groups = GuardedGroups()
    with groups.starting():
        for child in (kept, removed):
            groups.add(child.pid)
    groups.discard(removed.pid)
    assert groups == {kept.pid}
    groups.close()
    assert kept.wait(10) == -9
    assert removed.poll() is None
    removed.kill()
    removed.wait()


def test_groups_are_killed_when_parent_is_killed() -> None:
    script = GUARDING + "print(child.pid, groups._guard.pid, flush=True)\ntime.sleep(60)\n"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        child, guard = map(int, process.stdout.readline().split())
        process.kill()
    assert wait_gone(child) == []
    assert wait_gone(guard) == []


def test_guard_is_not_started_before_first_child() -> None:
    groups = GuardedGroups()
    assert groups._guard is None
    groups.close()


STARTING = """
import os, subprocess, sys, time
from rhapsody.backends.executables.guard import GuardedGroups
from rhapsody.processes import GROUP

older = subprocess.Popen(["sleep", "60"], **GROUP)
time.sleep(0.1)  # longer than the kernel's clock tick
groups = GuardedGroups()
with groups.starting():
    child = subprocess.Popen(["sleep", "60"], **GROUP)
    beside = subprocess.Popen(["sleep", "60"])  # in the program's own group
    print(older.pid, child.pid, beside.pid, groups._guard.pid, flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGTERM])
def test_child_being_started_is_killed_when_parent_is_killed(sig: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", STARTING], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        older, child, beside, guard = map(int, process.stdout.readline().split())
        process.send_signal(sig)
    try:
        assert wait_gone(guard) == []
        assert wait_gone(child) == []
        assert psutil.pid_exists(older)
        assert psutil.pid_exists(beside)
    finally:
        for pid in (older, beside):
            os.kill(pid, signal.SIGKILL)


def test_close_after_failed_start_kills_no_later_child() -> None:
    groups = GuardedGroups()
    with pytest.raises(FileNotFoundError), groups.starting():
        subprocess.Popen(["no-such-program"])
    later = subprocess.Popen(["sleep", "60"], **GROUP)
    groups.close()
    assert later.poll() is None
    later.kill()
    later.wait()


def test_forked_child_does_not_delay_the_guard() -> None:
    script = GUARDING + (
        "forked = os.fork()\n"
        "if forked:\n"
        "    print(child.pid, groups._guard.pid, forked, flush=True)\n"
        "os.close(1)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        child, guard, forked = map(int, process.stdout.readline().split())
        process.kill()
    try:
        assert wait_gone(child) == []
        assert wait_gone(guard) == []
        assert psutil.pid_exists(forked)
    finally:
        os.kill(forked, signal.SIGKILL)


def test_killed_guard_is_replaced() -> None:
    groups = GuardedGroups()
    first, second = (subprocess.Popen(["sleep", "60"], **GROUP) for _ in range(2))
    with groups.starting():
        groups.add(first.pid)
    assert groups._guard is not None
    groups._guard.kill()
    groups._guard.wait()
    with groups.starting():
        groups.add(second.pid)
    groups.close()
    assert first.wait(10) == second.wait(10) == -9


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_finished_start_does_not_extend_a_concurrent_start() -> None:
    groups = GuardedGroups()
    earlier = groups.starting()
    earlier.__enter__()
    time.sleep(0.1)  # longer than the kernel's clock tick
    unrelated = subprocess.Popen(["sleep", "60"], **GROUP)
    time.sleep(0.1)  # longer than the kernel's clock tick
    with groups.starting():
        earlier.__exit__(None, None, None)
        groups.close()
        assert unrelated.poll() is None
    unrelated.kill()
    unrelated.wait()


CHILD_OF_ANOTHER_PROGRAM = """
import subprocess, sys
from rhapsody.processes import GROUP

child = subprocess.Popen(["sleep", "60"], **GROUP)
print(child.pid, flush=True)
child.wait()
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_reused_process_id_is_not_killed() -> None:
    command = [sys.executable, "-c", CHILD_OF_ANOTHER_PROGRAM]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as another:
        assert another.stdout is not None
        pid = int(another.stdout.readline())
        groups = GuardedGroups()
        with groups.starting():
            groups.add(pid)  # as if a child had had this process id, and its end was not recorded
        groups.close()
        assert psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        os.kill(pid, signal.SIGKILL)
