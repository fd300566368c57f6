"""The base of backends that complete prompts: tasks, `generate` and `stream`."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

from rhapsody.backends.base import BaseBackend
from rhapsody.backends.core.execution import Location
from rhapsody.backends.core.service_loop import service_loop
from rhapsody.backends.core.work import Work, refuse_unknown
from rhapsody.backends.protocol import GENERATE_KINDS, PROMPT_KINDS
from rhapsody.errors import BackendError, UnsupportedTaskError
from rhapsody.inference.agents.tools import is_schema
from rhapsody.inference.execution import (
    PromptService,
    all_or_raise,
    complete_all,
    is_one_prompt,
    kind_of,
    parsed_outcome,
    run_prompt,
)
from rhapsody.inference.kinds import EXPECTED_PROMPTS, GENERATE, is_prompt
from rhapsody.inference.prompts import Completion
from rhapsody.sampling import SAMPLING_FIELDS, is_model_class
from rhapsody.streaming import OnText, TextCallback, stream_pieces

__all__ = ["Messages", "PromptBackend"]

Messages = Sequence[Mapping[str, Any]]

OPTIONS = frozenset({"timeout"})
"""Keys of `task_backend_specific_kwargs` that apply to prompts."""


class PromptBackend(BaseBackend):
    """Completes the prompts of tasks by a service that subclasses start and stop."""

    task_kinds = PROMPT_KINDS
    server_noun = "replica"
    """What reports call one server of the model."""
    _service: PromptService | None = None

    @property
    @abstractmethod
    def model_name(self) -> str:
        """Name of the served model."""

    @property
    def ai_kinds(self) -> frozenset[str] | None:
        """The kinds of AI task that the model takes; None if they are not known yet."""
        return GENERATE_KINDS

    @property
    def adapters(self) -> Collection[str] | None:
        """The names of the model's LoRA adapters; None if only the server knows them."""
        return None

    @property
    def replicas(self) -> list[dict[str, Any]]:
        """The servers: index, address, state, in_flight (prompts), and more of a server of ours."""
        replicas: list[dict[str, Any]] = self.get_statistics().get("replicas", [])
        return replicas

    def check(self, work: Work) -> None:
        """Check the kind, prompt, `on_text` and `model` of a task."""
        super().check(work)
        refuse_unknown(work, OPTIONS, self.name)
        self._check_kind(work.uid, work.task)
        _check_prompt(work.uid, work.task["prompt"], kind_of(work.task))
        if work.task.get("on_text") is not None:
            _check_stream(work.uid, work.task)
        self._check_model(work.uid, work.task)
        self._check_adapter(work.uid, work.task)
        if not all(map(is_schema, work.task.get("tools") or ())):
            raise UnsupportedTaskError(
                work.uid, "'tools' need a session or a workflow, which calls them"
            )

    def _check_kind(self, uid: str, task: Mapping[str, Any]) -> None:
        kinds, kind = self.ai_kinds, kind_of(task)
        if kinds is not None and kind not in kinds:
            raise UnsupportedTaskError(
                uid,
                f"backend '{self.name}' takes AI tasks of the kinds {', '.join(sorted(kinds))}, "
                f"not '{kind}'; use a backend whose model takes it",
            )

    def _check_model(self, uid: str, task: Mapping[str, Any]) -> None:
        model = task.get("model")
        known = self.model_name  # empty: not known before the start
        if model is not None and known and model != known:
            raise UnsupportedTaskError(
                uid, f"backend '{self.name}' serves the model '{known}', not '{model}'"
            )

    def _check_adapter(self, uid: str, task: Mapping[str, Any]) -> None:
        adapter, known = task.get("adapter"), self.adapters
        if adapter is not None and known is not None and adapter not in known:
            names = ", ".join(f"'{name}'" for name in sorted(known)) or "none"
            raise UnsupportedTaskError(
                uid,
                f"backend '{self.name}' has no adapter '{adapter}', it has {names}; load it with "
                "backend.load_adapter(name, path)",
            )

    async def execute(self, work: Work) -> dict[str, Any]:
        """Complete the task's prompts. `on_text` is called on the owner's loop.

        Returns:
            `response`, with `stdout` and `return_value` the same object, `usage` (tokens),
            `finish_reason`, and if requested `parsed` and `response_logprobs`. For the other kinds,
            see `AITask`.
        """
        task, sent = work.task, partial(self._sent, work)
        self._check_model(work.uid, task)
        self._check_kind(work.uid, task)
        self._check_adapter(work.uid, task)
        return await run_prompt(self._running_service(), task, sent, _text_feed(work))

    def _sent(self, work: Work, server: Any) -> None:
        place = f"{self.server_noun} {server.index}"
        work.location = Location(worker=place)
        self.report_running(work, place)

    def _running_service(self) -> PromptService:
        if self._service is None:
            raise BackendError(self.name, "it is not running; await backend.initialize() first")
        return self._service

    async def generate(
        self,
        prompts: str | Messages | Sequence[str | Messages],
        timeout: float | None = 300,
        *,
        system_prompt: str | None = None,
        return_exceptions: bool = False,
        priority: int = 0,
        **sampling: Any,
    ) -> list[Any]:
        """Complete prompts. Starts the backend if it is not running.

        Args:
            prompts: Texts or chats; a single text or chat is a list of one.
            timeout: Longest time for all prompts, in seconds; None: no limit.
            system_prompt: The system message before every prompt.
            return_exceptions: Return the exception of a failed prompt in its place, instead of
                raising.
            priority: Prompts of higher priority are handled first. A waiting prompt gains a step a
                minute.
            **sampling: Sampling parameters, such as `max_tokens=64`. `response_format` is a
                pydantic model class, or a dict as OpenAI's API has it.

        Returns:
            One response per prompt, in order: a str, or a list of str with `n` above 1. If
            `response_format` is a pydantic model class, its instances instead of str.

        Raises:
            PartialFailureError: Prompts failed; it has the results and the errors, in order.
            TimeoutError: It took longer than `timeout`. (`asyncio.TimeoutError` on Python 3.10.)
            TypeError: A sampling parameter is unknown.
            UnsupportedTaskError: There are no prompts, or one has the wrong type.
        """
        _check_sampling(sampling)
        _check_prompt("generate", prompts)
        each: list[Any] = [prompts] if is_one_prompt(prompts) else list(prompts)
        generating = service_loop().run(self._generate(each, system_prompt, sampling, priority))
        try:
            outcomes = await asyncio.wait_for(generating, timeout)
        except asyncio.TimeoutError:
            text = f"{len(each)} prompts did not finish within the timeout of {timeout} s"
            raise asyncio.TimeoutError(text) from None
        response_format = sampling.get("response_format")
        parsed = [parsed_outcome(outcome, response_format) for outcome in outcomes]
        if not return_exceptions:
            parsed = list(all_or_raise(parsed))
        objects = is_model_class(response_format)
        return [
            one if isinstance(one, BaseException) else (one[1] if objects else one[0].response)
            for one in parsed
        ]

    async def _generate(
        self,
        prompts: Sequence[Any],
        system_prompt: str | None,
        sampling: Mapping[str, Any],
        priority: int,
    ) -> list[Completion | BaseException]:
        await self._ensure_started()
        return await complete_all(
            self._running_service(), prompts, system_prompt, sampling, priority=priority
        )

    async def stream(
        self,
        prompt: str | Messages,
        *,
        system_prompt: str | None = None,
        priority: int = 0,
        **sampling: Any,
    ) -> AsyncGenerator[str, None]:
        """Yield the response to one prompt piece by piece, as it is generated.

        Args:
            prompt: A text or a chat.
            system_prompt: The system message before it.
            priority: Prompts of higher priority are handled first.
            **sampling: Sampling parameters, such as `max_tokens=64`.

        Raises:
            PromptError: The model refused the prompt.
            ReplicaError: The server died; what has been yielded stays.
            TaskCancelledError: The backend was shut down.
            TypeError: A sampling parameter is unknown.
            UnsupportedTaskError: There are several prompts, or `n` is above 1.
        """
        _check_sampling(sampling)
        task = {
            "uid": "stream",
            "prompt": prompt,
            "system_prompt": system_prompt,
            "priority": priority,
            **sampling,
        }
        text_stream = stream_pieces(lambda on_text: self.run_one({**task, "on_text": on_text}))
        async with aclosing(text_stream) as pieces:
            async for piece in pieces:
                yield piece

    def get_statistics(self) -> dict[str, Any]:
        """Return the number of batches and prompts so far, pending prompts, and the replicas."""
        return self._service.get_statistics() if self._service is not None else {}


def _check_prompt(uid: str, prompt: Any, kind: str = GENERATE) -> None:
    if prompt == "" or not _is_prompt(kind, prompt):
        expected = EXPECTED_PROMPTS.get(kind, EXPECTED_PROMPTS[GENERATE])
        raise UnsupportedTaskError(uid, f"'prompt' must be {expected}, got {prompt!r:.80}")


def _is_prompt(kind: str, prompt: Any) -> bool:
    if kind != GENERATE:
        return is_prompt(kind, prompt)
    if not isinstance(prompt, (list, tuple)):
        return isinstance(prompt, str)
    # The model server checks chats, so that a bad one fails alone.
    one_chat = all(isinstance(item, Mapping) for item in prompt)
    return bool(prompt) and (one_chat or all(isinstance(p, (str, list, tuple)) for p in prompt))


def _check_stream(uid: str, task: Mapping[str, Any]) -> None:
    if not callable(task["on_text"]):
        raise UnsupportedTaskError(uid, f"'on_text' must be callable, got {task['on_text']!r:.80}")
    if not is_one_prompt(task["prompt"]) or task.get("n") not in (None, 1):
        raise UnsupportedTaskError(uid, "streaming requires a single prompt with n=1")


def _text_feed(work: Work) -> OnText | None:
    on_text = work.task.get("on_text")
    if on_text is None:
        return None
    callback = TextCallback(work.uid, on_text)
    return lambda text: work.attachment.call(partial(callback, text))


def _check_sampling(sampling: Mapping[str, Any]) -> None:
    unknown = sampling.keys() - SAMPLING_FIELDS
    if unknown:
        raise TypeError(
            f"unknown sampling parameter {min(unknown)!r}; known: "
            f"{', '.join(sorted(SAMPLING_FIELDS))}"
        )
