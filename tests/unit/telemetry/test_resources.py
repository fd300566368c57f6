"""Samples of the node, its GPUs and the process tree."""

import asyncio
from typing import Any

import pytest

from rhapsody.telemetry import resources
from rhapsody.telemetry.resources import NodeSampler, ResourcePoller
from rhapsody.waiting import done_within


@pytest.fixture(autouse=True)
def short_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "FIRST_INTERVAL", 0.0)


def test_first_sample_has_cpu_and_memory_of_the_node() -> None:
    usage = NodeSampler().sample()
    assert usage.cpu_percent is not None
    assert 0 <= usage.cpu_percent <= 100
    assert usage.memory_percent is not None
    assert 0 < usage.memory_percent < 100
    assert (usage.memory_bytes or 0) > 1 << 20


def test_second_sample_has_bytes_since_the_first() -> None:
    sampler = NodeSampler()
    first, second = sampler.sample(), sampler.sample()
    assert (first.net_sent_bytes, first.net_recv_bytes) == (None, None)
    assert second.net_sent_bytes is None or second.net_sent_bytes >= 0
    assert second.disk_read_bytes is None or second.disk_read_bytes >= 0


async def test_update_of_each_gpu_follows_that_of_the_node(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class TwoGpus:
        def sample(self) -> dict[int, float]:
            return {0: 10.0, 3: 90.0}

    monkeypatch.setattr(resources, "GpuSampler", TwoGpus)
    events: list[Any] = []
    enough = asyncio.Event()

    def emit(event: Any) -> None:
        events.append(event)
        if len(events) == 3:
            enough.set()

    poller = ResourcePoller(emit)
    poller.add(object(), "s", "pool", 60)
    poller.start()
    assert await done_within(enough.wait(), 20)
    await poller.stop()
    node, *gpus = events
    assert (node.resource_scope, node.gpu_id, node.gpu_percent) == ("per_node", None, 90.0)
    assert node.cpu_percent is not None
    assert [(gpu.resource_scope, gpu.gpu_id, gpu.gpu_percent) for gpu in gpus] == [
        ("per_gpu", 0, 10.0),
        ("per_gpu", 3, 90.0),
    ]
    assert gpus[0].cpu_percent is None
