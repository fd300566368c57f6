"""The log of a server: its excerpt, the cause of a failure, and the kept copy."""

from pathlib import Path

import pytest

from rhapsody.inference.replicas.server_log import (
    LOG_TAIL_BYTES,
    clean,
    excerpt_of_file,
    keep_log,
    root_cause,
)

VLLM_LOG = """\
INFO 11-29 14:00:00 [api_server.py:1] ImportError: no triton, which is harmless
WARNING 11-29 14:00:00 [x.py:1] SomeError: not used
(EngineCore_DP0 pid=7) ERROR 11-29 14:00:01 [core.py:9] EngineCore failed to start.
(EngineCore_DP0 pid=7) ERROR 11-29 14:00:01 [core.py:9] Traceback (most recent call last):
(EngineCore_DP0 pid=7) ERROR 11-29 14:00:01 [core.py:9]   File "core.py", line 3, in run
(EngineCore_DP0 pid=7) ERROR 11-29 14:00:01 [core.py:9] ValueError: No available memory for blocks.
Traceback (most recent call last):
RuntimeError: Engine core initialization failed. See root cause above.
"""


def test_cause_is_the_first_exception() -> None:
    assert root_cause(VLLM_LOG) == "ValueError: No available memory for blocks."


@pytest.mark.parametrize(
    ("log", "cause"),
    [
        ("vllm serve: error: unrecognized arguments: --x", "error: unrecognized arguments: --x"),
        ("12:00 CRITICAL it burns", "CRITICAL it burns"),
        (
            "torch.OutOfMemoryError: CUDA out of memory",
            "torch.OutOfMemoryError: CUDA out of memory",
        ),
        ("UserWarning: old\nINFO 0 errors", ""),
        ("", ""),
    ],
)
def test_cause_without_traceback(log: str, cause: str) -> None:
    assert root_cause(log) == cause


def test_long_cause_is_cut() -> None:
    assert len(root_cause("ValueError: " + "x" * 10_000)) == 400


def test_long_cause_is_cut_between_words() -> None:
    cause = root_cause("ValueError: " + "x" * 380 + " a-secret-of-20-letters " + "y" * 1000)
    assert cause == "ValueError: " + "x" * 380


def test_excerpt_has_no_part_of_a_word(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text("x" * LOG_TAIL_BYTES + "secret " + "y" * (LOG_TAIL_BYTES - 10))
    assert excerpt_of_file(log) == "y" * (LOG_TAIL_BYTES - 10)


def test_excerpt_has_the_first_error_before_the_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text(VLLM_LOG + "noise\n" * LOG_TAIL_BYTES + "the end\n")
    excerpt = excerpt_of_file(log)
    assert excerpt.startswith("ValueError: No available memory for blocks.\n[...]\n")
    assert excerpt.endswith("the end")
    assert len(excerpt) < LOG_TAIL_BYTES + 500


def test_excerpt_of_a_short_log_is_the_log(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text(VLLM_LOG)
    assert excerpt_of_file(log) == VLLM_LOG.strip()


def test_missing_log_has_no_excerpt(tmp_path: Path) -> None:
    assert excerpt_of_file(tmp_path / "none") == ""


def test_clean_log_has_neither_control_sequences_nor_secrets() -> None:
    text = "\x1b[1;31mred\x1b[0m\ttab\r\n\x1b]0;title\x07next\x9b\x00 \x1b]8;;x\x1b\\link abc"
    assert clean(text, {"HF_TOKEN": "abc"}) == "red\ttab\nnext link ***"


def test_kept_log_is_private_and_clean(tmp_path: Path) -> None:
    log, kept = tmp_path / "server.log", tmp_path / "kept.log"
    log.write_text("token abc")
    kept.write_text("older and longer")
    keep_log(log, kept, {"HF_TOKEN": "abc"})
    assert kept.read_text() == "token ***"
    assert kept.stat().st_mode & 0o777 == 0o600


def test_log_that_cannot_be_kept_is_an_error(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text("x")
    with pytest.raises(OSError, match="none"):
        keep_log(log, tmp_path / "none" / "kept.log", {})
