"""Prometheus metrics of an inference service, with those of its replicas."""

from __future__ import annotations

import logging
from collections import Counter as Tally
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

__all__ = ["ClientMetrics", "Metrics", "merge_metrics"]

logger = logging.getLogger(__name__)

BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
SECONDS_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class ClientUsage(Protocol):
    """The usage of one HTTP client."""

    name: str
    prompts: int
    refused: int
    prompt_tokens: int
    completion_tokens: int


class ScaleEvents(Protocol):
    """The numbers of a pool that grows and shrinks."""

    wanted: int
    up: int
    down: int
    failed: int


class Metrics:
    """Counters and histograms of one service, in their own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._prompts = Counter(
            "rhapsody_prompts", "Prompts by outcome", ["outcome"], registry=self.registry
        )
        self._tokens = Counter("rhapsody_tokens", "Tokens", ["kind"], registry=self.registry)
        self._batch_size = Histogram(
            "rhapsody_batch_size",
            "Prompts in a batch",
            buckets=BATCH_BUCKETS,
            registry=self.registry,
        )
        self._queue_seconds = Histogram(
            "rhapsody_queue_seconds",
            "Time of a prompt in the batcher",
            ["priority"],
            buckets=SECONDS_BUCKETS,
            registry=self.registry,
        )
        self._first_seconds = Histogram(
            "rhapsody_time_to_first_piece_seconds",
            "Time until a streamed prompt's first text",
            buckets=SECONDS_BUCKETS,
            registry=self.registry,
        )
        self._prompt_seconds = Histogram(
            "rhapsody_prompt_seconds",
            "Time of a prompt from arrival to outcome",
            ["priority"],
            buckets=SECONDS_BUCKETS,
            registry=self.registry,
        )
        self._pending = Gauge(
            "rhapsody_pending_prompts", "Prompts queued or in flight", registry=self.registry
        )
        self._replicas = Gauge(
            "rhapsody_replicas", "Replicas by state", ["state"], registry=self.registry
        )
        self._wanted = Gauge(
            "rhapsody_replicas_wanted",
            "Replicas that the load needs, if their number follows the load",
            registry=self.registry,
        )
        self._scale_events = Gauge(
            "rhapsody_scale_events",
            "Replicas that were added, drained and stopped, or could not start",
            ["event"],
            registry=self.registry,
        )
        self._routed = Gauge(
            "rhapsody_prefix_routed_prompts",
            "Prompts with a long beginning, by whether a replica was chosen that has it",
            ["cached"],
            registry=self.registry,
        )
        self.batches = 0
        self.batched = 0

    def record_batch(self, priorities: Sequence[int], waits: Sequence[float]) -> None:
        """Record a batch.

        Args:
            priorities: The priority of each prompt of the batch.
            waits: Seconds that each prompt of the batch has waited.
        """
        self.batches += 1
        self.batched += len(waits)
        self._batch_size.observe(len(waits))
        for priority, wait in zip(priorities, waits, strict=True):
            self._queue_seconds.labels(_kind_of(priority)).observe(wait)

    def record_first_piece(self, seconds: float) -> None:
        """Record the time until the first text of a stream."""
        self._first_seconds.observe(seconds)

    def record_outcome(
        self,
        outcome: str,
        seconds: float,
        usage: Mapping[str, int] | None = None,
        priority: int = 0,
    ) -> None:
        """Record the outcome of a prompt.

        Args:
            outcome: "done", "error" or "cancelled".
            seconds: Time since the prompt was submitted.
            usage: Its tokens, if it was completed.
            priority: Its priority.
        """
        self._prompts.labels(outcome).inc()
        self._prompt_seconds.labels(_kind_of(priority)).observe(seconds)
        if usage:
            self._tokens.labels("prompt").inc(usage.get("prompt_tokens", 0))
            self._tokens.labels("completion").inc(usage.get("completion_tokens", 0))

    def set_scaling(self, scaling: ScaleEvents) -> None:
        """Set how many replicas are wanted, and what was done for it so far."""
        self._wanted.set(scaling.wanted)
        for event in ("up", "down", "failed"):
            self._scale_events.labels(event).set(getattr(scaling, event))

    def set_routed(self, hits: int, misses: int) -> None:
        """Set how many prompts with a long beginning were routed to it, and how many were not."""
        self._routed.labels("yes").set(hits)
        self._routed.labels("no").set(misses)

    def expose(self, pending: int, states: Iterable[str], replicas: Mapping[int, str]) -> bytes:
        """Return all metrics in Prometheus' text format.

        Args:
            pending: Prompts queued or in flight.
            states: The state of each replica.
            replicas: The metrics of each replica as text, by its index. They are exposed with a
                label `replica`.
        """
        self._pending.set(pending)
        self._replicas.clear()
        for state, number in Tally(states).items():
            self._replicas.labels(state).set(number)
        labelled = {str(index): text for index, text in replicas.items()}
        return generate_latest(self.registry) + merge_metrics(labelled, "replica")


class ClientMetrics:
    """Gauges of the usage of HTTP clients, in their own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._client_prompts = Gauge(
            "rhapsody_client_prompts",
            "Prompts by HTTP client, and those that its rate refused",
            ["client", "outcome"],
            registry=self.registry,
        )
        self._client_tokens = Gauge(
            "rhapsody_client_tokens",
            "Tokens by HTTP client",
            ["client", "kind"],
            registry=self.registry,
        )

    def expose(self, clients: Iterable[ClientUsage]) -> bytes:
        """Return the usage of each HTTP client in Prometheus' text format."""
        self._client_prompts.clear()
        self._client_tokens.clear()
        for client in clients:
            self._client_prompts.labels(client.name, "accepted").set(client.prompts)
            self._client_prompts.labels(client.name, "refused").set(client.refused)
            self._client_tokens.labels(client.name, "prompt").set(client.prompt_tokens)
            self._client_tokens.labels(client.name, "completion").set(client.completion_tokens)
        return generate_latest(self.registry)


def merge_metrics(texts: Mapping[str, str], label: str) -> bytes:
    """Return the metrics of several sources as one text in Prometheus' format.

    Args:
        texts: The metrics of each source as text, by its name.
        label: The label that gets the name of the source.
    """
    registry = CollectorRegistry()
    registry.register(_Merged(texts, label))
    return generate_latest(registry)


def _kind_of(priority: int) -> str:
    """Return the label of a priority. Each value of its own would make too many series."""
    return "urgent" if priority > 0 else "low" if priority < 0 else "normal"


class _Merged:
    """The metric families of all sources, with a label that names the source."""

    def __init__(self, texts: Mapping[str, str], label: str) -> None:
        self._texts = texts
        self._label = label

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for name, text in self._texts.items():
            try:
                found = list(text_string_to_metric_families(text))
            except ValueError as error:
                logger.warning(
                    "the metrics of %s %s cannot be parsed: %s", self._label, name, error
                )
                continue
            for family in found:
                merged = families.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                for sample in family.samples:
                    merged.add_sample(
                        sample.name, {**sample.labels, self._label: name}, sample.value
                    )
        yield from families.values()
