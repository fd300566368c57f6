"""Executables whose parent ends, in whatever way, while it starts them or after."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from rhapsody.backends.guard import GuardedGroups
from rhapsody.processes import GROUP


def ended(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.01)
    return False


def test_what_is_still_in_it_ends_when_it_is_closed() -> None:
    left = subprocess.Popen(["sleep", "60"], **GROUP)
    taken_out = subprocess.Popen(["sleep", "60"], **GROUP)
    groups = GuardedGroups()
    with groups.starting():
        for child in (left, taken_out):
            groups.add(child.pid)
    groups.discard(taken_out.pid)
    assert groups == {left.pid}
    groups.close()
    assert left.wait(10) == -9
    assert taken_out.poll() is None
    taken_out.kill()
    taken_out.wait()


def test_what_is_in_it_ends_when_its_process_is_killed() -> None:
    script = (
        "import os, subprocess, sys, time\n"
        "from rhapsody.backends.guard import GuardedGroups\n"
        "groups = GuardedGroups()\n"
        "with groups.starting():\n"
        "    child = subprocess.Popen(['sleep', '60'], start_new_session=True)\n"
        "    groups.add(child.pid)\n"
        "print(child.pid, groups._guard.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        child, guard = map(int, process.stdout.readline().split())
        process.kill()
    assert ended(child)
    assert ended(guard)


def test_an_unused_one_has_no_guard() -> None:
    groups = GuardedGroups()
    assert groups._guard is None
    groups.close()


STARTING = """
import os, subprocess, sys, time
from rhapsody.backends.guard import GuardedGroups
from rhapsody.processes import GROUP

older = subprocess.Popen(["sleep", "60"], **GROUP)
time.sleep(0.1)
groups = GuardedGroups()
with groups.starting():
    child = subprocess.Popen(["sleep", "60"], **GROUP)
    beside = subprocess.Popen(["sleep", "60"])  # of the program's own group
    print(older.pid, child.pid, beside.pid, groups._guard.pid, flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc here")
@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGTERM])
def test_what_is_being_started_ends_when_its_process_is_killed(sig: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", STARTING], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        older, child, beside, guard = map(int, process.stdout.readline().split())
        process.send_signal(sig)
    try:
        assert ended(guard)
        assert ended(child)
        assert psutil.pid_exists(older)
        assert psutil.pid_exists(beside)
    finally:
        for pid in (older, beside):
            os.kill(pid, signal.SIGKILL)


def test_what_could_not_be_started_is_looked_for_no_more() -> None:
    groups = GuardedGroups()
    with pytest.raises(FileNotFoundError), groups.starting():
        subprocess.Popen(["no-such-program"])
    later = subprocess.Popen(["sleep", "60"], **GROUP)
    groups.close()
    assert later.poll() is None
    later.kill()
    later.wait()


def test_a_forked_child_of_its_process_holds_nothing_up() -> None:
    script = (
        "import os, subprocess, sys, time\n"
        "from rhapsody.backends.guard import GuardedGroups\n"
        "groups = GuardedGroups()\n"
        "with groups.starting():\n"
        "    child = subprocess.Popen(['sleep', '60'], start_new_session=True)\n"
        "    groups.add(child.pid)\n"
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
        assert ended(child)
        assert ended(guard)
        assert psutil.pid_exists(forked)
    finally:
        os.kill(forked, signal.SIGKILL)


def test_a_guard_that_was_killed_is_replaced() -> None:
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


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc here")
def test_of_two_that_are_started_together_the_one_that_is_there_is_looked_for_no_more() -> None:
    groups = GuardedGroups()
    earlier = groups.starting()
    earlier.__enter__()
    time.sleep(0.1)
    somebodys = subprocess.Popen(["sleep", "60"], **GROUP)
    time.sleep(0.1)
    with groups.starting():
        earlier.__exit__(None, None, None)
        groups.close()
        assert somebodys.poll() is None
    somebodys.kill()
    somebodys.wait()


OF_ANOTHER = """
import subprocess, sys
from rhapsody.processes import GROUP

child = subprocess.Popen(["sleep", "60"], **GROUP)
print(child.pid, flush=True)
child.wait()
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc here")
def test_a_process_id_that_is_somebody_elses_by_now_is_let_alone() -> None:
    command = [sys.executable, "-c", OF_ANOTHER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as another:
        assert another.stdout is not None
        pid = int(another.stdout.readline())
        groups = GuardedGroups()
        with groups.starting():
            groups.add(pid)  # as if it had been a child's, whose end was never told
        groups.close()
        assert psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        os.kill(pid, signal.SIGKILL)
