"""The log of a server: its last lines, and the line that says why the server failed."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

from rhapsody.errors import printable
from rhapsody.processes import SECRET_VARIABLES

__all__ = ["LOG_TAIL_BYTES", "clean", "excerpt_of", "excerpt_of_file", "keep_log", "root_cause"]

LOG_TAIL_BYTES = 4000
"""How many bytes of the end of a server's log its errors show."""
SEARCHED_BYTES = 4 * 1024 * 1024
"""How many bytes of the beginning of a log are searched for the first error."""
CAUSE_CHARACTERS = 400
KEPT_BYTES = 16 * 1024 * 1024
"""How much of the end of a log is kept."""
SECRETS = SECRET_VARIABLES | {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "VLLM_API_KEY"}
"""Variables whose values are masked in logs that are shown or kept."""
OMITTED = "[...]"

EXCEPTION = re.compile(r"\b[A-Za-z_][\w.]*(?:Error|Exception|Exit)\b: *\S.*")
"""The line of a traceback that names the exception."""
LEVEL = re.compile(r"(?:\b(?:ERROR|CRITICAL|FATAL)\b|\berror: ).*")
"""A line that a logger or a command line's parser has marked as an error."""
HARMLESS = re.compile(r"\b(?:DEBUG|INFO|WARNING)\b|[A-Za-z]Warning: ")


def root_cause(log: str) -> str:
    """Return the first error in a log, "" if there is none.

    The first one is the cause: servers of several processes report a failed start once more in
    each process that depends on the failed one.

    Args:
        log: The log, or its excerpt.
    """
    for pattern in (EXCEPTION, LEVEL):
        for line in log.splitlines():
            found = pattern.search(line)
            if found and not HARMLESS.search(line):
                return _shortened(found[0].strip())
    return ""


def excerpt_of(log: int) -> str:
    """Return the last lines of a log, after the first error if that stands before them.

    Args:
        log: The descriptor of a file that is open for reading.
    """
    size = os.fstat(log).st_size
    begin = max(0, size - LOG_TAIL_BYTES)
    tail = _text(os.pread(log, LOG_TAIL_BYTES, begin))
    if begin:
        tail = _after_first_word(tail)
    cause = root_cause(_text(os.pread(log, min(begin, SEARCHED_BYTES), 0))) if begin else ""
    return f"{cause}\n{OMITTED}\n{tail}" if cause else tail


def excerpt_of_file(log: Path) -> str:
    """Return the excerpt of a log file, "" if there is no file."""
    with contextlib.suppress(OSError), log.open("rb") as file:
        return excerpt_of(file.fileno())
    return ""


def clean(text: str, environment: Mapping[str, str]) -> str:
    """Return a log without control sequences, and with secrets masked.

    Args:
        text: The log.
        environment: The server's own variables, beside those of this process.
    """
    text = printable(text)
    for name, value in {**os.environ, **environment}.items():
        if name in SECRETS and value:
            text = text.replace(value, "***")
    return text


def keep_log(log: Path, kept: Path, environment: Mapping[str, str]) -> None:
    """Copy a log, cleaned, to a file that only its owner can read.

    Args:
        log: The log.
        kept: The file, which is replaced.
        environment: As for `clean`.

    Raises:
        OSError: The file cannot be written.
    """
    with log.open("rb") as source:
        begin = max(0, log.stat().st_size - KEPT_BYTES)
        source.seek(begin)
        text = source.read().decode("utf-8", errors="replace")
    text = clean(_after_first_word(text) if begin else text, environment)
    kept.unlink(missing_ok=True)
    descriptor = os.open(kept, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as target:
        target.write(text)


def _after_first_word(text: str) -> str:
    """Remove a first word that may be cut. The rest of a cut secret would not be masked."""
    words = text.split(maxsplit=1)
    return words[1] if len(words) == 2 else ""


def _shortened(cause: str) -> str:
    """Shorten a line to `CAUSE_CHARACTERS`, if possible between two words, as a secret is one."""
    if len(cause) <= CAUSE_CHARACTERS:
        return cause
    end = cause.rfind(" ", CAUSE_CHARACTERS // 2, CAUSE_CHARACTERS + 1)
    return cause[: end if end > 0 else CAUSE_CHARACTERS]


def _text(data: bytes) -> str:
    return data.decode("utf-8", errors="replace").strip()
