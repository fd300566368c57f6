"""The scheduler: many prompts at once, a token of each in turn.

One coroutine writes for all of them and lets the event loop run after every round, so a long
answer never stands in the way of a short one.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

from rhapsody.inference.embedded.errors import RequestError
from rhapsody.inference.embedded.model import NgramModel, Prompt
from rhapsody.inference.embedded.sampling import Sampling
from rhapsody.inference.embedded.writer import Writer

logger = logging.getLogger(__name__)

# A round over many prompts takes milliseconds: the loop runs after this many tokens too.
_TOKENS_PER_TURN = 64

DeltaListener = Callable[[int, str], None]
EndListener = Callable[["Job"], None]


class Job:
    """One prompt on its way through the scheduler.

    Args:
        prompt: The prompt as the model has read it.
        writers: Its answers in the making.
        on_end: Called once with the job, when it is finished, failed or cancelled.
        on_delta: Called with the answer's index and its new text, as the text comes.
    """

    def __init__(
        self,
        prompt: Prompt,
        writers: list[Writer],
        on_end: EndListener,
        on_delta: DeltaListener | None = None,
    ) -> None:
        """Nothing runs before `Scheduler.submit` takes it."""
        self.prompt = prompt
        self.writers = writers
        self.on_end = on_end
        self.on_delta = on_delta
        self.error: RequestError | None = None

    @property
    def texts(self) -> list[str]:
        """The answers so far."""
        return [writer.text for writer in self.writers]

    @property
    def finish_reasons(self) -> list[str]:
        """Why each answer ended; only for a job that has finished."""
        return [writer.finish_reason or "" for writer in self.writers]

    @property
    def usage(self) -> dict[str, int]:
        """Tokens of the prompt and of all answers, as OpenAI writes them."""
        completion = sum(writer.count for writer in self.writers)
        return {
            "prompt_tokens": self.prompt.length,
            "completion_tokens": completion,
            "total_tokens": self.prompt.length + completion,
        }


class Scheduler:
    """Runs jobs in turn, up to a number of them at once; the others wait in their order.

    Args:
        model: The model that answers.
        max_num_seqs: How many prompts are answered at once.
        token_delay: Seconds to wait after each round of tokens, for tests and drills.
        seed: Where requests without a seed take theirs from; None is different every time.
    """

    def __init__(
        self,
        model: NgramModel,
        max_num_seqs: int = 256,
        token_delay: float = 0.0,
        seed: int | None = None,
    ) -> None:
        """Start with nothing to do; `run` does the work."""
        self.model = model
        self.max_num_seqs = max_num_seqs
        self.token_delay = token_delay
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self._seeds = None if seed is None else random.Random(seed)
        # Dicts for their order and their quick removal from the middle.
        self._running: dict[Job, None] = {}
        self._waiting: dict[Job, None] = {}
        self._work = asyncio.Event()

    @property
    def running(self) -> int:
        """How many prompts are being answered."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """How many prompts wait for their turn."""
        return len(self._waiting)

    def submit(
        self,
        text: str,
        sampling: Sampling,
        on_end: EndListener,
        on_delta: DeltaListener | None = None,
    ) -> Job:
        """Take a prompt. The listeners are called from `run`, never from here.

        Args:
            text: The prompt, a rendered chat or a text to continue.
            sampling: What the request asks for.
            on_end: Called once with the job, when it is finished, failed or cancelled.
            on_delta: Called with the answer's index and its new text, as the text comes.

        Returns:
            The job.

        Raises:
            RequestError: The model cannot take this prompt.
        """
        prompt = self.model.read(text, sampling)
        seed = None if self._seeds is None else self._seeds.getrandbits(63)
        job = Job(prompt, self.model.writers(prompt, sampling, seed), on_end, on_delta)
        self.prompt_tokens += prompt.length
        self._waiting[job] = None
        self._work.set()
        return job

    def cancel(self, job: Job) -> bool:
        """End a job where it is; its listener is told.

        Args:
            job: A job of this scheduler.

        Returns:
            False where it had already ended.
        """
        if job not in self._running and job not in self._waiting:
            return False
        self._end(job, RequestError("The request was cancelled.", code=499))
        return True

    async def run(self) -> None:
        """Answer what is submitted, until cancelled."""
        while True:
            while not self._running and not self._waiting:
                self._work.clear()
                await self._work.wait()
            while self._waiting and len(self._running) < self.max_num_seqs:
                job = next(iter(self._waiting))
                del self._waiting[job]
                self._running[job] = None
            await self._round()
            await asyncio.sleep(self.token_delay)

    async def _round(self) -> None:
        """One token of every answer of every running job."""
        tokens = 0
        for job in list(self._running):
            for index, writer in enumerate(job.writers):
                if job not in self._running:
                    break  # cancelled while the loop ran
                if writer.finish_reason is None:
                    self._advance(job, index, writer)
                    tokens += 1
                    if tokens % _TOKENS_PER_TURN == 0:
                        await asyncio.sleep(0)
            else:
                if all(writer.finish_reason for writer in job.writers) and job in self._running:
                    self._end(job, None)

    def _advance(self, job: Job, index: int, writer: Writer) -> None:
        before = writer.count
        try:
            text = writer.advance()
        except Exception as error:
            # One prompt that the model stumbles over must not end the answers to all others.
            logger.exception("the model failed on a prompt")
            self._end(job, RequestError(f"The model failed: {error!r}", code=500))
            return
        self.generation_tokens += writer.count - before
        if text and job.on_delta is not None:
            job.on_delta(index, text)

    def _end(self, job: Job, error: RequestError | None) -> None:
        self._running.pop(job, None)
        self._waiting.pop(job, None)
        job.error = error
        job.on_end(job)
