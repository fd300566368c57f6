"""The readings of a server's metrics."""

import pytest

from rhapsody.command.top import _describe, _metrics_url, _parse
from rhapsody.errors import RhapsodyError

METRICS = """\
# TYPE rhapsody_prompts counter
rhapsody_prompts_total{outcome="done"} 40.0
rhapsody_prompts_total{outcome="failed"} 1.0
# TYPE rhapsody_tokens counter
rhapsody_tokens_total{kind="completion"} 900.0
# TYPE rhapsody_pending_prompts gauge
rhapsody_pending_prompts 7.0
# TYPE rhapsody_replicas gauge
rhapsody_replicas{state="ready"} 2.0
# TYPE vllm:request_success counter
vllm:request_success_total{engine="0",finished_reason="stop"} 5.0
vllm:request_success_total{engine="0",finished_reason="length"} 6.0
"""


def test_reading_describes_the_server() -> None:
    text = _describe(_parse(METRICS), None)
    assert "2 ready" in text
    assert "7 prompts" in text
    assert "40 done, 1 failed" in text
    assert "requests  11 done, 0 running" in text


def test_rate_is_that_since_the_previous_reading() -> None:
    now = _parse(METRICS)
    before = now._replace(at=now.at - 2, prompts={"done": 20.0, "failed": 1.0})
    assert "(10.0/s)" in _describe(now, before)


CHATS = """\
# TYPE rhapsody_pending_prompts gauge
rhapsody_pending_prompts 2.0
# TYPE rhapsody_embedded_requests counter
rhapsody_embedded_requests_total{replica="0"} 3.0
rhapsody_embedded_requests_total{replica="1"} 4.0
# TYPE rhapsody_embedded_requests_running gauge
rhapsody_embedded_requests_running{replica="0"} 2.0
# TYPE rhapsody_embedded_generation_tokens counter
rhapsody_embedded_generation_tokens_total{replica="0"} 90.0
"""


def test_chats_are_counted_with_their_rate() -> None:
    now = _parse(CHATS)
    before = now._replace(at=now.at - 2, requests=1.0, generated=10.0)
    text = _describe(now, before)
    assert "requests  7 done, 2 running  (3.0/s)" in text
    assert "generated 90 tokens  (40.0/s)" in text
    assert "none yet" not in text


def test_server_without_requests_says_so() -> None:
    text = _describe(
        _parse("# TYPE rhapsody_pending_prompts gauge\nrhapsody_pending_prompts 0\n"), None
    )
    assert "prompts   none yet" in text
    assert "requests" not in text


def test_server_of_another_program_is_refused() -> None:
    with pytest.raises(RhapsodyError, match="no metrics of Rhapsody"):
        _parse("# TYPE up gauge\nup 1.0\n")


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("http://node7:8000", "http://node7:8000/metrics"),
        ("http://node7:8000/v1", "http://node7:8000/metrics"),
        ("node7:8000", "http://node7:8000/metrics"),
    ],
)
def test_address_may_be_short(given: str, address: str) -> None:
    assert _metrics_url(given) == address


def test_wanted_replicas_are_shown_if_their_number_follows_the_load() -> None:
    metrics = f"""{METRICS}# TYPE rhapsody_replicas_wanted gauge
rhapsody_replicas_wanted 3.0
# TYPE rhapsody_scale_events gauge
rhapsody_scale_events{{event="up"}} 3.0
"""
    assert "2 ready, 3 wanted" in _describe(_parse(metrics), None)
    assert "wanted" not in _describe(_parse(METRICS), None)
