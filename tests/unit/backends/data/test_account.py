"""The account of the memory in use."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rhapsody.backends.data.account import Account

KILLED = """
import sys, time
from rhapsody.backends.data.account import Account
account = Account(sys.argv[1], 10)
with account.locked():
    account.add(3)
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "account")


def test_processes_share_one_account(path: str) -> None:
    one, other = Account(path, 10), Account(path, 10)
    with one.locked():
        one.add(7)
    assert other.used == 7
    with other.locked():
        assert other.has_room(3)
        assert not other.has_room(4)
        other.add(-7)
    assert one.used == 0
    one.close()
    other.close()


def test_file_is_private(path: str) -> None:
    Account(path, 1).close()
    assert os.stat(path).st_mode & 0o777 == 0o600


def test_process_that_was_killed_holds_no_lock(path: str) -> None:
    command = [sys.executable, "-c", KILLED, path]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        program.stdout.readline()
        program.send_signal(signal.SIGKILL)
    account = Account(path, 10)
    with account.locked():
        account.replace(5)
    assert account.used == 5
    account.close()


def test_closed_account_cannot_be_used(path: str) -> None:
    account = Account(path, 1)
    account.close()
    with pytest.raises(ValueError, match="descriptor"), account.locked():
        pass
