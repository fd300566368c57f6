"""The scheduler of the embedded model: many prompts at once, one token of each in turn.

One coroutine generates all tokens and lets the event loop run after every round, so a long
completion never delays a short one.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import random
from collections.abc import Callable, Sequence

from rhapsody.inference.embedded.generation import Steps
from rhapsody.inference.embedded.model import NgramModel
from rhapsody.inference.embedded.sampling import Sampling
from rhapsody.inference.embedded.structure.steps import KnownText
from rhapsody.inference.protocol.batch import token_usage
from rhapsody.inference.protocol.errors import RequestError

__all__ = ["PromptScheduler", "ScheduledPrompt"]

logger = logging.getLogger(__name__)

# A round over many prompts takes milliseconds: the loop also runs after this many tokens.
_TOKENS_PER_TURN = 64

DeltaListener = Callable[[int, str], None]
EndListener = Callable[["ScheduledPrompt"], None]


class ScheduledPrompt:
    """A prompt that waits or runs in the scheduler, with its completions.

    Args:
        length: The number of tokens of the prompt.
        generations: Its completions in progress.
        on_end: Called once with this object, when it is finished, failed or cancelled.
        on_delta: Called with a completion's index and its new text.
    """

    def __init__(
        self,
        length: int,
        generations: Sequence[Steps],
        on_end: EndListener,
        on_delta: DeltaListener | None = None,
    ) -> None:
        self.length = length
        self.generations = generations
        self.on_end = on_end
        self.on_delta = on_delta
        self.error: RequestError | None = None

    @property
    def texts(self) -> list[str]:
        """The completions so far."""
        return [generation.text for generation in self.generations]

    @property
    def finish_reasons(self) -> list[str]:
        """Why each completion ended; valid once all have."""
        return [generation.finish_reason or "" for generation in self.generations]

    @property
    def usage(self) -> dict[str, int]:
        """Token counts of the prompt and all completions, under OpenAI's names."""
        completion = sum(generation.tokens for generation in self.generations)
        return token_usage(self.length, completion)


class PromptScheduler:
    """Runs a limited number of prompts at once, in turn; the others wait in their order.

    Args:
        model: The model.
        max_num_seqs: Number of prompts that run at once.
        token_delay: Seconds to wait after each round of tokens, for tests and drills.
        seed: Seeds the requests that name no seed; None: random seeds.
    """

    def __init__(
        self,
        model: NgramModel,
        max_num_seqs: int = 256,
        token_delay: float = 0.0,
        seed: int | None = None,
    ) -> None:
        self.model = model
        self.max_num_seqs = max_num_seqs
        self.token_delay = token_delay
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.finished = 0
        """The number of prompts that were neither refused nor cancelled."""
        self._seeds = None if seed is None else random.Random(seed)
        # A dict keeps the order and allows fast removal from the middle.
        self._running: dict[ScheduledPrompt, None] = {}
        self._waiting: set[ScheduledPrompt] = set()
        self._queue: list[tuple[int, int, ScheduledPrompt]] = []
        """A heap by order and arrival. It may hold prompts that were cancelled."""
        self._submitted = 0
        self._work = asyncio.Event()

    @property
    def running(self) -> int:
        """The number of prompts that run."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """The number of prompts that wait."""
        return len(self._waiting)

    def submit(
        self,
        text: str,
        sampling: Sampling,
        on_end: EndListener,
        on_delta: DeltaListener | None = None,
        order: int = 0,
        known: str | None = None,
    ) -> ScheduledPrompt:
        """Queue a prompt. Its listeners are called from `run`, never from here.

        Args:
            text: A rendered chat, or a text to continue.
            sampling: The request's sampling parameters.
            on_end: Called once with the prompt, when it is finished, failed or cancelled.
            on_delta: Called with a completion's index and its new text.
            order: Prompts with lower numbers run first.
            known: The text of the completion; None: the model writes it.

        Raises:
            RequestError: The model cannot process this prompt.
        """
        prompt = self.model.read(text, sampling)
        seed = None if self._seeds is None else self._seeds.getrandbits(63)
        generations: Sequence[Steps]
        if known is None:
            generations = self.model.generations(prompt, sampling, seed)
        else:
            generations = [KnownText(known, len(known) + 1) for _ in range(sampling.n)]
        return self.enqueue(ScheduledPrompt(prompt.length, generations, on_end, on_delta), order)

    def enqueue(self, scheduled: ScheduledPrompt, order: int = 0) -> ScheduledPrompt:
        """Queue a prompt that the model has read. Returns it.

        Args:
            scheduled: The prompt.
            order: Prompts with lower numbers run first.
        """
        self.prompt_tokens += scheduled.length
        self._waiting.add(scheduled)
        self._submitted += 1
        heapq.heappush(self._queue, (order, self._submitted, scheduled))
        self._work.set()
        return scheduled

    def cancel(self, scheduled: ScheduledPrompt) -> bool:
        """End a prompt early; its listener is called.

        Args:
            scheduled: A prompt of this scheduler.

        Returns:
            False if it had already ended.
        """
        if scheduled not in self._running and scheduled not in self._waiting:
            return False
        self._end(scheduled, RequestError.cancelled())
        return True

    async def run(self) -> None:
        """Generate tokens for submitted prompts until this coroutine is cancelled."""
        while True:
            while not self._running and not self._waiting:
                self._work.clear()
                await self._work.wait()
            while self._waiting and len(self._running) < self.max_num_seqs:
                scheduled = heapq.heappop(self._queue)[2]
                if scheduled in self._waiting:
                    self._waiting.remove(scheduled)
                    self._running[scheduled] = None
            await self._round()
            await asyncio.sleep(self.token_delay)

    async def _round(self) -> None:
        """Generate one token of every unfinished completion of every running prompt."""
        tokens = 0
        for scheduled in list(self._running):
            for index, generation in enumerate(scheduled.generations):
                if scheduled not in self._running:
                    break  # cancelled while the loop ran
                if generation.finish_reason is None:
                    self._advance(scheduled, index, generation)
                    tokens += 1
                    if tokens % _TOKENS_PER_TURN == 0:
                        await asyncio.sleep(0)
            else:
                finished = all(one.finish_reason for one in scheduled.generations)
                if finished and scheduled in self._running:
                    self._end(scheduled, None)

    def _advance(self, scheduled: ScheduledPrompt, index: int, generation: Steps) -> None:
        before = generation.tokens
        try:
            text = generation.advance()
        except Exception as error:
            # A prompt that makes the model fail must not end the completions of all others.
            logger.exception("the model failed on a prompt")
            self._end(scheduled, RequestError(f"The model failed: {error!r}", code=500))
            return
        self.generation_tokens += generation.tokens - before
        if text and scheduled.on_delta is not None:
            scheduled.on_delta(index, text)

    def _end(self, scheduled: ScheduledPrompt, error: RequestError | None) -> None:
        self._running.pop(scheduled, None)
        self._waiting.discard(scheduled)
        scheduled.error = error
        self.finished += error is None
        scheduled.on_end(scheduled)
