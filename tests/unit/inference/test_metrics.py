"""Metrics, parsed back from their text, and the dashboard that shows them."""

import json
import re
from pathlib import Path

import yaml
from prometheus_client.parser import text_string_to_metric_families

from rhapsody.inference.metrics import ClientMetrics, Metrics

REPLICA = """\
# HELP vllm:num_requests_running Requests running.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{model_name="tiny"} 3.0
# HELP vllm:tokens_total Tokens.
# TYPE vllm:tokens_total counter
vllm:tokens_total 5.0
# HELP vllm:seconds Time.
# TYPE vllm:seconds histogram
vllm:seconds_bucket{le="1.0"} 1.0
vllm:seconds_bucket{le="+Inf"} 2.0
vllm:seconds_count 2.0
vllm:seconds_sum 4.0
"""


def read(metrics: Metrics, **parts: object) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    given = {"pending": 0, "states": [], "replicas": {}, **parts}
    exposed = metrics.expose(**given).decode()  # type: ignore[arg-type]
    families = list(text_string_to_metric_families(exposed))
    assert len({family.name for family in families}) == len(families), "a family appears twice"
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_batch_is_recorded_with_size_and_waits() -> None:
    metrics = Metrics()
    metrics.record_batch([0, 10, -1], [0.1, 0.2, 0.3])
    samples = read(metrics)
    assert samples["rhapsody_batch_size_count", ()] == 1
    assert samples["rhapsody_batch_size_sum", ()] == 3
    for kind in ("normal", "urgent", "low"):
        assert samples["rhapsody_queue_seconds_count", (("priority", kind),)] == 1


def test_outcome_is_recorded_with_tokens() -> None:
    metrics = Metrics()
    metrics.record_outcome("done", 1.0, {"prompt_tokens": 3, "completion_tokens": 5})
    metrics.record_outcome("error", 1.0)
    samples = read(metrics)
    assert samples["rhapsody_prompts_total", (("outcome", "done"),)] == 1
    assert samples["rhapsody_prompts_total", (("outcome", "error"),)] == 1
    assert samples["rhapsody_tokens_total", (("kind", "prompt"),)] == 3
    assert samples["rhapsody_tokens_total", (("kind", "completion"),)] == 5


def test_gauges_show_current_values() -> None:
    metrics = Metrics()
    read(metrics, states=["STARTING"])
    samples = read(metrics, pending=7, states=["READY", "READY"])
    assert samples["rhapsody_pending_prompts", ()] == 7
    assert samples["rhapsody_replicas", (("state", "READY"),)] == 2
    assert ("rhapsody_replicas", (("state", "STARTING"),)) not in samples


def test_replica_metrics_have_a_replica_label() -> None:
    samples = read(Metrics(), replicas={0: REPLICA, 1: REPLICA})
    for replica in ("0", "1"):
        labels = (("model_name", "tiny"), ("replica", replica))
        assert samples["vllm:num_requests_running", labels] == 3
        assert samples["vllm:tokens_total", (("replica", replica),)] == 5
        assert samples["vllm:seconds_bucket", (("le", "1.0"), ("replica", replica))] == 1
        assert samples["vllm:seconds_sum", (("replica", replica),)] == 4


def test_invalid_replica_metrics_are_skipped() -> None:
    samples = read(Metrics(), replicas={0: "no { metrics", 1: REPLICA})
    assert samples["vllm:tokens_total", (("replica", "1"),)] == 5


def test_dashboard_shows_every_metric_and_no_other() -> None:
    metrics = Metrics()
    registries = (metrics.registry, ClientMetrics().registry)
    names = {metric.name for registry in registries for metric in registry.collect()}
    folder = Path(__file__).parents[3] / "examples" / "monitoring"
    dashboard = json.loads((folder / "grafana.json").read_text())
    shown = {
        re.sub("_(bucket|sum|count|total)$", "", name)
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"rhapsody_\w+", target["expr"])
    }
    assert shown == names
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
    assert yaml.safe_load((folder / "prometheus.yml").read_text())["scrape_configs"]
