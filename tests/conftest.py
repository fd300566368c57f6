"""Checks for every test: the session leaves nothing behind, and asyncio logs no error."""

import json
import logging
import os
import secrets
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Generator, Iterator
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.runtimes import RUNTIMES
from tests.support import leaks

# Servers and worker pools share the cores with hypothesis, so its time limits would be unreliable.
hypothesis.settings.register_profile("rhapsody", deadline=None)
hypothesis.settings.load_profile("rhapsody")

# Seconds after which a timeout is raised again if it did not end its test.
TIMEOUT_AGAIN_S = 5

EXECUTED = pytest.StashKey[Counter[str]]()
LOST = pytest.StashKey["LostErrors"]()
SCRATCH = pytest.StashKey[Path]()


class LostErrors(logging.Handler):
    """Collects errors that asyncio only logs: destroyed tasks and exceptions never retrieved."""

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

    # A shell starts its background jobs with this signal ignored, also for their children.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)

    os.environ[leaks.SESSION_VARIABLE] = secrets.token_hex(8)

    # The session has its own temporary folder, since the shared one may contain files of another
    # Rhapsody on this machine. pytest's tmp_path keeps its location.
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
    config.stash[SCRATCH] = Path(tempfile.mkdtemp(prefix="rhapsody-tests-"))
    os.environ["TMPDIR"] = tempfile.tempdir = str(config.stash[SCRATCH])

    config.stash[EXECUTED] = Counter()
    config.stash[LOST] = LostErrors()
    logging.getLogger("asyncio").addHandler(config.stash[LOST])


def pytest_unconfigure(config: pytest.Config) -> None:
    if LOST in config.stash:
        logging.getLogger("asyncio").removeHandler(config.stash[LOST])
        # After multiprocessing, which removes its own folder in there at exit with priority -100.
        Finalize(None, shutil.rmtree, (config.stash[SCRATCH], True), exitpriority=-200)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for runtime in RUNTIMES:
        if not runtime.installed:
            skip = pytest.mark.skip(reason=f"{runtime.name} is not installed")
            for item in items:
                if item.get_closest_marker(runtime.marker):
                    item.add_marker(skip)


@pytest.hookimpl(wrapper=True, tryfirst=True)  # outermost, so that xfail is already applied
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call" and not report.skipped:
        item.config.stash[EXECUTED].update(
            r.marker for r in RUNTIMES if item.get_closest_marker(r.marker)
        )
    return report


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_timeout_set_timer(settings: Any) -> Generator[None, object, object]:
    # The signal's exception is raised in the code that runs when it arrives. If that is another
    # task of the event loop, the task takes the exception and the test continues to hang.
    result = yield
    if signal.getitimer(signal.ITIMER_REAL)[0]:
        signal.setitimer(signal.ITIMER_REAL, settings.timeout, TIMEOUT_AGAIN_S)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    # Not in a fixture, because the test's event loop is closed after the last fixture.
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
    """Return the errors that asyncio logged in this test, which fails unless it clears the list."""
    return pytestconfig.stash[LOST].messages


@pytest.fixture(scope="session", autouse=True)
def elsewhere(pytestconfig: pytest.Config) -> Iterator[None]:
    """Run outside the checkout: AsyncFlow creates session folders in the working directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(pytestconfig.stash[SCRATCH])
        # Processes that a test starts import the same checkout, even if it is not installed.
        patch.setenv("PYTHONPATH", str(pytestconfig.rootpath), prepend=os.pathsep)
        yield


@pytest.fixture(scope="session", autouse=True)
def leak_check(elsewhere: None) -> Iterator[None]:
    """Check that nothing outlives the session, once for all tests because the check is slow."""
    before = leaks.look()
    yield
    if left := leaks.left_behind(before):
        pytest.fail(
            "The test session (not only the test named here) leaves behind:\n  "
            + "\n  ".join(left),
            pytrace=False,
        )
