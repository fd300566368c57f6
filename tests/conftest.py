"""What holds for every test: a session that leaves nothing behind, and no error lost in a log."""

import json
import logging
import os
import secrets
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.runtimes import RUNTIMES
from tests.support import leaks

# Examples of a property share their cores with servers and pools: time is no property of theirs.
hypothesis.settings.register_profile("rhapsody", deadline=None)
hypothesis.settings.load_profile("rhapsody")

# Seconds after which a timeout that did not end its test is raised again.
TIMEOUT_AGAIN_S = 5

EXECUTED = pytest.StashKey[Counter[str]]()
LOST = pytest.StashKey["LostErrors"]()
SCRATCH = pytest.StashKey[Path]()


class LostErrors(logging.Handler):
    """Collects what asyncio can only log: destroyed tasks, exceptions that nobody retrieved."""

    def __init__(self) -> None:
        super().__init__(level=logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(self.format(record))

    def take(self) -> list[str]:
        taken = list(self.messages)
        self.messages.clear()
        return taken


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--runtimes-report",
        type=Path,
        metavar="FILE",
        help="write the number of tests executed per runtime marker to FILE, as JSON",
    )


def pytest_configure(config: pytest.Config) -> None:
    for runtime in RUNTIMES:
        config.addinivalue_line("markers", f"{runtime.marker}: needs {runtime.name}")
    config.addinivalue_line("markers", "slow: takes more than a few seconds")

    os.environ[leaks.SESSION_VARIABLE] = secrets.token_hex(8)

    # A temporary folder of the session's own: in the shared one, files of another Rhapsody that
    # runs on this machine could not be told from ours. pytest keeps its tmp_path where it was.
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
    config.stash[SCRATCH] = Path(tempfile.mkdtemp(prefix="rhapsody-tests-"))
    os.environ["TMPDIR"] = tempfile.tempdir = str(config.stash[SCRATCH])

    config.stash[EXECUTED] = Counter()
    config.stash[LOST] = LostErrors()
    logging.getLogger("asyncio").addHandler(config.stash[LOST])


def pytest_unconfigure(config: pytest.Config) -> None:
    if LOST in config.stash:
        logging.getLogger("asyncio").removeHandler(config.stash[LOST])
        # After multiprocessing, which removes its own folder in there at exit, with priority -100.
        Finalize(None, shutil.rmtree, (config.stash[SCRATCH], True), exitpriority=-200)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for runtime in RUNTIMES:
        if not runtime.installed:
            skip = pytest.mark.skip(reason=f"{runtime.name} is not installed")
            for item in items:
                if item.get_closest_marker(runtime.marker):
                    item.add_marker(skip)


@pytest.hookimpl(wrapper=True, tryfirst=True)  # outermost: sees what became of an xfail
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Iterator[pytest.TestReport]:
    report: pytest.TestReport = yield
    if report.when == "call" and not report.skipped:
        item.config.stash[EXECUTED].update(
            r.marker for r in RUNTIMES if item.get_closest_marker(r.marker)
        )
    return report


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_timeout_set_timer(settings: Any) -> Iterator[object]:
    # The signal is raised in whatever runs when it arrives. Where that is not the hanging test
    # but another task of its event loop, the task takes the exception and the test hangs on.
    result = yield
    if signal.getitimer(signal.ITIMER_REAL)[0]:
        signal.setitimer(signal.ITIMER_REAL, settings.timeout, TIMEOUT_AGAIN_S)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    # Here and not in a fixture: the test's event loop is closed after the last fixture is.
    yield
    if lost := item.config.stash[LOST].take():
        pytest.fail("asyncio logged errors:\n" + "\n".join(lost), pytrace=False)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if report := session.config.getoption("--runtimes-report"):
        report.write_text(json.dumps(session.config.stash[EXECUTED]))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    executed = terminalreporter.config.stash[EXECUTED]
    terminalreporter.section("runtimes")
    for runtime in RUNTIMES:
        terminalreporter.line(runtime.describe(executed[runtime.marker]))


@pytest.fixture
def asyncio_errors(pytestconfig: pytest.Config) -> list[str]:
    """What asyncio logged as an error in this test, which fails unless it clears the list."""
    return pytestconfig.stash[LOST].messages


@pytest.fixture(scope="session", autouse=True)
def elsewhere(pytestconfig: pytest.Config) -> Iterator[None]:
    """Run outside the checkout: AsyncFlow makes its session folders where it is started."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(pytestconfig.stash[SCRATCH])
        # What a test starts imports the same checkout as the test, installed or not.
        patch.setenv("PYTHONPATH", str(pytestconfig.rootpath), prepend=os.pathsep)
        yield


@pytest.fixture(scope="session", autouse=True)
def leak_check(elsewhere: None) -> Iterator[None]:
    """Nothing of the session's outlives it: once for all tests, since a look costs too much."""
    before = leaks.look()
    yield
    if left := leaks.left_behind(before):
        pytest.fail(
            "The test session (not just the test named here) leaves behind:\n  "
            + "\n  ".join(left),
            pytrace=False,
        )
