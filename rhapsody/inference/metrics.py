"""What a service measures of itself, in Prometheus' terms, with the replicas' own beside it."""

from __future__ import annotations

import logging
from collections import Counter as Tally
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

__all__ = ["Metrics"]

logger = logging.getLogger(__name__)

BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
SECONDS_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """Counters and histograms of one service, in a registry of their own."""

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
            buckets=SECONDS_BUCKETS,
            registry=self.registry,
        )
        self._pending = Gauge(
            "rhapsody_pending_prompts", "Prompts queued or in flight", registry=self.registry
        )
        self._replicas = Gauge(
            "rhapsody_replicas", "Replicas by state", ["state"], registry=self.registry
        )
        self.batches = 0
        self.batched = 0

    def batch(self, waits: list[float]) -> None:
        """Record a batch: how long each of its prompts waited, in seconds."""
        self.batches += 1
        self.batched += len(waits)
        self._batch_size.observe(len(waits))
        for wait in waits:
            self._queue_seconds.observe(wait)

    def first_piece(self, seconds: float) -> None:
        """Record the time to a stream's first text."""
        self._first_seconds.observe(seconds)

    def outcome(self, outcome: str, seconds: float, usage: Mapping[str, int] | None = None) -> None:
        """Record the end of a prompt: "done", "error" or "cancelled"."""
        self._prompts.labels(outcome).inc()
        self._prompt_seconds.observe(seconds)
        if usage:
            self._tokens.labels("prompt").inc(usage.get("prompt_tokens", 0))
            self._tokens.labels("completion").inc(usage.get("completion_tokens", 0))

    def expose(self, pending: int, states: Iterable[str], replicas: Mapping[int, str]) -> bytes:
        """Return everything in Prometheus' text format.

        Args:
            pending: Prompts queued or in flight now.
            states: The state of each replica.
            replicas: Each replica's own metrics, as text, by its number; a label `replica` is
                added to them.
        """
        self._pending.set(pending)
        self._replicas.clear()
        for state, number in Tally(states).items():
            self._replicas.labels(state).set(number)
        others = CollectorRegistry()
        others.register(_Merged(replicas))
        return generate_latest(self.registry) + generate_latest(others)


class _Merged:
    """The families of several expositions, told apart by a label."""

    def __init__(self, texts: Mapping[int, str]) -> None:
        self._texts = texts

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for index, text in self._texts.items():
            try:
                found = list(text_string_to_metric_families(text))
            except ValueError as error:
                logger.warning("the metrics of model server %d cannot be read: %s", index, error)
                continue
            for family in found:
                merged = families.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                for sample in family.samples:
                    labels = {**sample.labels, "replica": str(index)}
                    merged.add_sample(sample.name, labels, sample.value)
        yield from families.values()
