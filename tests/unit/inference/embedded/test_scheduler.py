import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from rhapsody.inference.embedded import NgramModel, RequestError, Sampling
from rhapsody.inference.embedded.scheduler import Job, Scheduler

LONG = Sampling(max_tokens=500, ignore_eos=True, temperature=0)
SHORT = Sampling(max_tokens=5, ignore_eos=True, temperature=0)


class Listener:
    """Remembers the order in which things came."""

    def __init__(self) -> None:
        self.ended: list[Job] = []
        self.deltas: list[tuple[str, str]] = []
        self._wake = asyncio.Event()

    def on_end(self, job: Job) -> None:
        self.ended.append(job)
        self._wake.set()

    def on_delta(self, name: str) -> Callable[[int, str], None]:
        def listen(index: int, text: str) -> None:
            self.deltas.append((name, text))
            self._wake.set()

        return listen

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._wake.clear()
            await asyncio.wait_for(self._wake.wait(), 10)


@pytest.fixture
async def scheduler() -> AsyncIterator[Scheduler]:
    made = Scheduler(NgramModel(), max_num_seqs=2)
    running = asyncio.create_task(made.run())
    yield made
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_short_prompt_does_not_wait_for_a_long_one(scheduler):
    listener = Listener()
    long = scheduler.submit("Once", LONG, listener.on_end)
    short = scheduler.submit("Twice", SHORT, listener.on_end)
    await listener.until(lambda: len(listener.ended) == 1)
    assert listener.ended == [short]
    assert long.writers[0].finish_reason is None


async def test_prompts_are_written_a_token_each_in_turn(scheduler):
    listener = Listener()
    for name in ("a", "b"):
        scheduler.submit("Once", SHORT, listener.on_end, listener.on_delta(name))
    await listener.until(lambda: len(listener.ended) == 2)
    assert [name for name, _ in listener.deltas] == ["a", "b"] * 5


async def test_no_more_than_the_limit_run_and_the_others_wait_in_order(scheduler):
    listener = Listener()
    jobs = [scheduler.submit("Once", SHORT, listener.on_end) for _ in range(6)]
    assert (scheduler.running, scheduler.waiting) == (0, 6)
    await listener.until(lambda: bool(listener.ended))
    assert scheduler.running <= 2
    await listener.until(lambda: len(listener.ended) == 6)
    assert listener.ended == jobs
    assert (scheduler.running, scheduler.waiting) == (0, 0)


async def test_a_waiting_and_a_running_prompt_can_be_cancelled_once(scheduler):
    listener = Listener()
    jobs = [
        scheduler.submit("Once", LONG, listener.on_end, listener.on_delta("x")) for _ in range(3)
    ]
    await listener.until(lambda: bool(listener.deltas))
    assert [scheduler.cancel(job) for job in jobs] == [True, True, True]
    assert [scheduler.cancel(job) for job in jobs] == [False, False, False]
    assert listener.ended == jobs
    assert {(job.error.code, job.error.kind) for job in jobs} == {(499, "Cancelled")}


async def test_the_loop_runs_between_the_tokens_of_one_answer(scheduler):
    listener = Listener()
    job = scheduler.submit("Once", LONG, listener.on_end)
    turns = 0
    while not listener.ended:
        await asyncio.sleep(0)
        turns += 1
    assert turns >= job.usage["completion_tokens"] == 500


async def test_a_failure_of_the_model_fails_one_prompt_alone(scheduler, caplog):
    listener = Listener()
    bad = scheduler.submit("Once", SHORT, listener.on_end)
    good = scheduler.submit("Once", SHORT, listener.on_end)
    bad.writers[0]._sampling = None  # what a bug of the writer would look like
    await listener.until(lambda: len(listener.ended) == 2)
    assert (bad.error.code, bad.error.kind) == (500, "InternalServerError")
    assert good.error is None
    assert "failed on a prompt" in caplog.text


async def test_a_refused_prompt_is_never_queued(scheduler):
    with pytest.raises(RequestError):
        scheduler.submit("", SHORT, Listener().on_end)
    assert scheduler.waiting == 0


async def test_tokens_are_counted(scheduler):
    listener = Listener()
    job = scheduler.submit(
        "Once upon", Sampling(max_tokens=7, ignore_eos=True, n=3), listener.on_end
    )
    await listener.until(lambda: bool(listener.ended))
    assert job.usage == {"prompt_tokens": 2, "completion_tokens": 21, "total_tokens": 23}
    assert (scheduler.prompt_tokens, scheduler.generation_tokens) == (2, 21)


@pytest.mark.parametrize(("seed", "repeats"), [(5, True), (None, False)])
async def test_a_server_s_seed_makes_requests_without_one_repeatable(seed, repeats):
    async def answers() -> list[str]:
        made = Scheduler(NgramModel(), seed=seed)
        running = asyncio.create_task(made.run())
        listener = Listener()
        for _ in range(8):
            made.submit("It is", Sampling(), listener.on_end)
        await listener.until(lambda: len(listener.ended) == 8)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return sorted(job.texts[0] for job in listener.ended)

    first, second = await answers(), await answers()
    assert (first == second) is repeats
    assert len(set(first)) > 1
