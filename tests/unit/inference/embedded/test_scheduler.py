"""The scheduler of the embedded model: turns, limits, cancellation."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from rhapsody.inference.embedded import NgramModel, RequestError, Sampling
from rhapsody.inference.embedded.scheduler import PromptScheduler, ScheduledPrompt

LONG = Sampling(max_tokens=500, ignore_eos=True, temperature=0)
SHORT = Sampling(max_tokens=5, ignore_eos=True, temperature=0)


class Listener:
    """Records ends and deltas in order."""

    def __init__(self) -> None:
        self.ended: list[ScheduledPrompt] = []
        self.deltas: list[tuple[str, str]] = []
        self._wake = asyncio.Event()

    def on_end(self, scheduled: ScheduledPrompt) -> None:
        self.ended.append(scheduled)
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


def error_of(scheduled: ScheduledPrompt) -> tuple[int, str]:
    assert scheduled.error is not None
    return scheduled.error.code, scheduled.error.kind


@pytest.fixture
async def scheduler() -> AsyncIterator[PromptScheduler]:
    made = PromptScheduler(NgramModel(), max_num_seqs=2)
    running = asyncio.create_task(made.run())
    yield made
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_short_prompt_ends_before_long_one(scheduler: PromptScheduler) -> None:
    listener = Listener()
    long = scheduler.submit("Once", LONG, listener.on_end)
    short = scheduler.submit("Twice", SHORT, listener.on_end)
    await listener.until(lambda: len(listener.ended) == 1)
    assert listener.ended == [short]
    assert long.generations[0].finish_reason is None


async def test_prompts_get_one_token_each_in_turn(scheduler: PromptScheduler) -> None:
    listener = Listener()
    for name in ("a", "b"):
        scheduler.submit("Once", SHORT, listener.on_end, listener.on_delta(name))
    await listener.until(lambda: len(listener.ended) == 2)
    assert [name for name, _ in listener.deltas] == ["a", "b"] * 5


async def test_prompts_beyond_the_limit_wait_in_order(scheduler: PromptScheduler) -> None:
    listener = Listener()
    prompts = [scheduler.submit("Once", SHORT, listener.on_end) for _ in range(6)]
    assert (scheduler.running, scheduler.waiting) == (0, 6)
    await listener.until(lambda: bool(listener.ended))
    assert scheduler.running <= 2
    await listener.until(lambda: len(listener.ended) == 6)
    assert listener.ended == prompts
    assert (scheduler.running, scheduler.waiting) == (0, 0)
    assert scheduler.finished == 6


async def test_cancel_ends_waiting_and_running_prompts_once(scheduler: PromptScheduler) -> None:
    listener = Listener()
    prompts = [
        scheduler.submit("Once", LONG, listener.on_end, listener.on_delta("x")) for _ in range(3)
    ]
    await listener.until(lambda: bool(listener.deltas))
    assert [scheduler.cancel(scheduled) for scheduled in prompts] == [True, True, True]
    assert [scheduler.cancel(scheduled) for scheduled in prompts] == [False, False, False]
    assert listener.ended == prompts
    assert {error_of(scheduled) for scheduled in prompts} == {(499, "Cancelled")}
    assert scheduler.finished == 0


async def test_loop_runs_between_tokens(scheduler: PromptScheduler) -> None:
    listener = Listener()
    scheduled = scheduler.submit("Once", LONG, listener.on_end)
    turns = 0
    while not listener.ended:
        await asyncio.sleep(0)
        turns += 1
    assert turns >= scheduled.usage["completion_tokens"] == 500


async def test_model_failure_fails_only_its_prompt(
    scheduler: PromptScheduler, caplog: pytest.LogCaptureFixture
) -> None:
    listener = Listener()
    bad = scheduler.submit("Once", SHORT, listener.on_end)
    good = scheduler.submit("Once", SHORT, listener.on_end)
    bad.generations[0]._sampling = None  # type: ignore[attr-defined]  # as a bug would
    await listener.until(lambda: len(listener.ended) == 2)
    assert error_of(bad) == (500, "InternalServerError")
    assert good.error is None
    assert "failed on a prompt" in caplog.text


async def test_refused_prompt_is_not_queued(scheduler: PromptScheduler) -> None:
    with pytest.raises(RequestError):
        scheduler.submit("", SHORT, Listener().on_end)
    assert scheduler.waiting == 0


async def test_tokens_are_counted(scheduler: PromptScheduler) -> None:
    listener = Listener()
    scheduled = scheduler.submit(
        "Once upon", Sampling(max_tokens=7, ignore_eos=True, n=3), listener.on_end
    )
    await listener.until(lambda: bool(listener.ended))
    assert scheduled.usage == {"prompt_tokens": 2, "completion_tokens": 21, "total_tokens": 23}
    assert (scheduler.prompt_tokens, scheduler.generation_tokens) == (2, 21)


@pytest.mark.parametrize(("seed", "repeats"), [(5, True), (None, False)])
async def test_server_seed_makes_unseeded_requests_repeatable(
    seed: int | None, repeats: bool
) -> None:
    async def texts() -> list[str]:
        made = PromptScheduler(NgramModel(), seed=seed)
        running = asyncio.create_task(made.run())
        listener = Listener()
        for _ in range(8):
            made.submit("It is", Sampling(), listener.on_end)
        await listener.until(lambda: len(listener.ended) == 8)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return sorted(scheduled.texts[0] for scheduled in listener.ended)

    first, second = await texts(), await texts()
    assert (first == second) is repeats
    assert len(set(first)) > 1
