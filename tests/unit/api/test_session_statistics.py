"""Sessions count and time their tasks."""

from typing import Any

from rhapsody import ComputeTask, Session
from rhapsody.backends import ConcurrentExecutionBackend, NoopExecutionBackend
from tests.support.held import HeldBackend
from tests.support.sessions import boom, work


async def test_statistics_count_tasks_by_state_and_backend(held: HeldBackend) -> None:
    async with Session([ConcurrentExecutionBackend(), held]) as session:
        ended = [ComputeTask(function=work), ComputeTask(function=boom)]
        active = ComputeTask(function=work, backend="held")
        await session.submit_tasks([*ended, active])
        await session.wait_tasks(ended)
        await session.cancel(active)
        statistics = session.get_statistics()
    assert statistics["tasks"] == {"DONE": 1, "FAILED": 1, "CANCELED": 1}
    assert statistics["backends"]["concurrent"]["tasks"] == {"DONE": 1, "FAILED": 1}
    latency = statistics["backends"]["concurrent"]["latency_seconds"]
    assert latency["count"] == 2
    assert 0 <= latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["max"]


async def test_statistics_include_the_backend() -> None:
    class Talkative(NoopExecutionBackend):
        def get_statistics(self) -> dict[str, Any]:
            return {"mean_batch_size": 8.0}

    async with Session([Talkative("t")]) as session:
        assert session.get_statistics()["backends"]["t"]["backend"] == {"mean_batch_size": 8.0}
