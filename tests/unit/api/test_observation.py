"""Observation: what a session shows of its tasks, apart from the session."""

import gc
import weakref

from rhapsody import ComputeTask, Session
from rhapsody.api.observation import Observation
from rhapsody.api.submissions.submissions import Submissions
from rhapsody.backends import NoopExecutionBackend
from tests.support.sessions import work


async def test_statistics_and_table_name_each_backend() -> None:
    async with Session([NoopExecutionBackend("one"), NoopExecutionBackend("two")]) as session:
        await session.wait_tasks(await _submitted(session, "two"))
        observation = session._observation
        assert observation.statistics()["tasks"] == {"DONE": 2}
        assert list(observation.statistics()["backends"]) == ["one", "two"]
        assert [row[0] for row in observation.table()] == ["backend", "one", "two"]


async def _submitted(session: Session, backend: str) -> list[ComputeTask]:
    tasks = [ComputeTask(function=work, backend=backend) for _ in range(2)]
    await session.submit_tasks(tasks)
    return tasks


def test_source_of_a_page_does_not_keep_the_observation() -> None:
    observation = Observation("s", Submissions())
    source, ended = observation.page_source(), weakref.ref(observation)
    gc.disable()
    try:
        del observation
        assert ended() is None
    finally:
        gc.enable()
    assert source.title == "s"
    assert list(source.runs()) == []
    assert list(source.resources()) == []
