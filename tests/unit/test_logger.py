"""`enable_logging`: one handler on Rhapsody's logger."""

import io
import logging
from collections.abc import Iterator

import pytest

from rhapsody import enable_logging, logger

LOG = logging.getLogger("rhapsody")
CHILD = logging.getLogger("rhapsody.some.module")


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restore the logger's state after the test."""
    monkeypatch.setattr(logger, "_handler", None)
    handlers, level, propagate = list(LOG.handlers), LOG.level, LOG.propagate
    yield
    LOG.handlers[:] = handlers
    LOG.setLevel(level)
    LOG.propagate = propagate


def test_records_go_to_the_stream_with_their_level() -> None:
    stream = io.StringIO()
    enable_logging("WARNING", stream=stream)
    CHILD.info("not shown")
    CHILD.warning("shown")
    [line] = stream.getvalue().splitlines()
    assert line.endswith("WARNING rhapsody.some.module: shown")


def test_format_can_be_given() -> None:
    stream = io.StringIO()
    enable_logging(logging.DEBUG, "%(message)s!", stream)
    CHILD.debug("hi")
    assert stream.getvalue() == "hi!\n"


def test_later_call_replaces_the_handler() -> None:
    first, second = io.StringIO(), io.StringIO()
    enable_logging(stream=first)
    enable_logging(stream=second)
    CHILD.info("once")
    assert first.getvalue() == ""
    assert len(second.getvalue().splitlines()) == 1


def test_call_without_force_keeps_the_handler() -> None:
    first, second = io.StringIO(), io.StringIO()
    enable_logging(stream=first)
    enable_logging(stream=second, force=False)
    CHILD.info("once")
    assert len(first.getvalue().splitlines()) == 1
    assert second.getvalue() == ""


def test_other_loggers_are_not_changed() -> None:
    root = logging.getLogger()
    before = (list(root.handlers), root.level)
    enable_logging("DEBUG", stream=io.StringIO())
    assert (list(root.handlers), root.level) == before
    assert not LOG.propagate


def test_default_stream_is_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    enable_logging()
    CHILD.info("hello")
    assert capsys.readouterr().err.endswith("hello\n")


def test_records_have_no_control_sequences() -> None:
    stream = io.StringIO()
    enable_logging(format_string="%(message)s", stream=stream)
    try:
        raise ValueError("\x1b]0;title\x07intended")
    except ValueError:
        CHILD.exception("task %s failed", "\x1b[2Jt1")
    assert "\x1b" not in stream.getvalue()
    assert stream.getvalue().startswith("task t1 failed\nTraceback")
    assert stream.getvalue().endswith("ValueError: intended\n")
