"""The inference backend: AI tasks in, responses out, through the batcher."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

from rhapsody.api.errors import (
    BackendError,
    PartialFailureError,
    PromptError,
    UnsupportedTaskError,
)
from rhapsody.backends.base import BaseBackend
from rhapsody.backends.protocol import PROMPT_KINDS
from rhapsody.backends.service import service_loop
from rhapsody.backends.work import Work
from rhapsody.inference.config import InferenceConfig
from rhapsody.inference.prompts import Completion
from rhapsody.inference.replica import Replica
from rhapsody.inference.service import InferenceService
from rhapsody.inference.structured import parsed_response, with_schema
from rhapsody.inference.turns import outcomes_of
from rhapsody.sampling import SAMPLING_FIELDS, is_model_class
from rhapsody.streaming import OnText, TextCallback, pieces_of

__all__ = ["DragonVllmInferenceBackend"]

Messages = Sequence[Mapping[str, Any]]


class DragonVllmInferenceBackend(BaseBackend):
    """Serves a model: batches prompts, keeps its servers alive, and answers over HTTP if wanted.

    Args:
        config_file: YAML file with the engine's own options; None takes the engine's defaults.
        model_name: Name or path of the model.
        num_nodes: Nodes to serve on.
        num_gpus: GPUs on each node; 0 serves on the CPU.
        tp_size: GPUs that one replica of the model spans.
        port: Port of the HTTP server; 0 takes any free one.
        offset: First node of the allocation to use, counted from 0.
        use_service: Serve HTTP as well (server mode); otherwise engine mode, Python only.
        max_batch_size: Most prompts in a batch.
        max_batch_wait_ms: Longest time, in milliseconds, that a prompt waits for others while
            every replica is busy. Where one has room, prompts leave at once.
        name: Name of the backend.
        engine: "vllm", or "embedded" for a small text generator that needs no GPU and no
            download. It is not a real model and says so.
        launcher: "dragon" to place servers on the nodes of a Dragon allocation, "local" to start
            them on this machine.
        host: Address to listen at; None is this machine's name. "127.0.0.1" keeps it private.
        api_key: Key that HTTP clients must send; the variable RHAPSODY_API_KEY where None.
        max_pending: Most prompts queued and in flight. Beyond it `generate` waits, HTTP answers
            503, and submitted tasks are held.
        max_retries: How often a prompt is sent again whose server died.
        max_restarts: How often in a row a server is restarted.
        startup_timeout: Longest time for a server to become ready, in seconds.
        health_interval: Time between health checks of a server, in seconds.
        hang_timeout: Longest time that vLLM's engine process may take to react before its server
            is replaced, in seconds. It does not react while it compiles.

    Raises:
        ConfigurationError: A parameter has the wrong type or range. What depends on this machine
            is checked by `initialize`, before any process starts.
    """

    task_kinds = PROMPT_KINDS

    def __init__(
        self,
        config_file: str | os.PathLike[str] | None,
        model_name: str,
        num_nodes: int = 1,
        num_gpus: int = 1,
        tp_size: int = 1,
        port: int = 8000,
        offset: int = 0,
        use_service: bool = True,
        max_batch_size: int = 1024,
        max_batch_wait_ms: float = 500,
        name: str = "dragon_vllm",
        *,
        engine: str = "vllm",
        launcher: str | None = None,
        host: str | None = None,
        api_key: str | None = None,
        max_pending: int = 65536,
        max_retries: int = 2,
        max_restarts: int = 5,
        startup_timeout: float = 600.0,
        health_interval: float = 2.0,
        hang_timeout: float = 60.0,
    ) -> None:
        super().__init__(name)
        self.config = InferenceConfig(
            model_name=model_name,
            config_file=config_file,
            engine=engine,
            launcher=launcher,
            num_nodes=num_nodes,
            num_gpus=num_gpus,
            tp_size=tp_size,
            offset=offset,
            host=host,
            port=port,
            use_service=use_service,
            api_key=api_key or os.environ.get("RHAPSODY_API_KEY") or None,
            max_batch_size=max_batch_size,
            max_batch_wait_ms=max_batch_wait_ms,
            max_pending=max_pending,
            max_retries=max_retries,
            max_restarts=max_restarts,
            startup_timeout=startup_timeout,
            health_interval=health_interval,
            hang_timeout=hang_timeout,
        )
        self._service: InferenceService | None = None

    @property
    def model_name(self) -> str:
        """The model served."""
        return self.config.model_name

    async def start(self) -> None:
        """Start the model's servers, and the HTTP server in server mode."""
        service = InferenceService(self.config, lambda size: self.history.batch(size))
        self._service = service
        _running.add(self)
        try:
            await service.start()
        except BaseException:
            self._service = None
            _running.discard(self)
            raise

    async def stop(self) -> None:
        """End all servers."""
        if self._service is not None:
            service, self._service = self._service, None
            try:
                await service.stop()
            finally:
                _running.discard(self)

    async def shutdown(self, drain_seconds: float = 0) -> None:
        """End everything; tasks still active are reported CANCELED. Idempotent; never raises.

        Args:
            drain_seconds: Time for prompts that are being answered, in seconds. Meanwhile nothing
                new is taken: HTTP clients get a 503.
        """
        service = self._service
        if drain_seconds > 0 and service is not None:
            await service_loop().run(service.drain(drain_seconds))
        await super().shutdown()

    def abandon(self) -> None:
        """Kill the servers."""
        if self._service is not None:
            self._service.kill()

    def check(self, work: Work) -> None:
        """Refuse what is no prompt, or asks for another model."""
        super().check(work)
        _check_prompt(work.uid, work.task["prompt"])
        if work.task.get("on_text") is not None:
            _check_stream(work.uid, work.task)
        self._check_model(work.uid, work.task)

    def _check_model(self, uid: str, task: Mapping[str, Any]) -> None:
        model = task.get("model")
        if model is not None and model != self.model_name:
            raise UnsupportedTaskError(
                uid, f"backend '{self.name}' serves the model '{self.model_name}', not '{model}'"
            )

    async def execute(self, work: Work) -> dict[str, Any]:
        """Answer the task's prompts; `on_text` is called on the owner's loop.

        Returns:
            `response`, with `stdout` and `return_value` the same object, `usage` (tokens),
            `finish_reason`, and where asked for `parsed` and `response_logprobs`.
        """
        task, sent = work.task, partial(self._sent, work)
        prompt, system_prompt = task["prompt"], task.get("system_prompt")
        sampling = {k: task[k] for k in SAMPLING_FIELDS & task.keys() if task[k] is not None}
        wanted = sampling.get("response_format")
        if not _is_one(prompt):
            outcomes = await self._complete_all(prompt, system_prompt, sampling, sent)
            return _result_fields([_parsed(o, wanted) for o in outcomes], single=False)
        completion = await self._running_service().complete(
            prompt, system_prompt, with_schema(sampling), sent, _text_feed(work)
        )
        answer = completion, parsed_response(completion, wanted)
        return _result_fields([answer], single=True)

    def _sent(self, work: Work, replica: Replica) -> None:
        self.running(work, f"replica {replica.index}")

    async def _complete_all(
        self,
        prompts: Sequence[Any],
        system_prompt: str | None,
        sampling: Mapping[str, Any],
        on_sent: Callable[[Replica], None] | None = None,
    ) -> list[Completion | BaseException]:
        service = self._running_service()
        sampling = with_schema(sampling)
        return await outcomes_of(
            service.complete(prompt, system_prompt, sampling, on_sent) for prompt in prompts
        )

    def _running_service(self) -> InferenceService:
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
        **sampling: Any,
    ) -> list[Any]:
        """Answer prompts; starts the backend where it does not run.

        Args:
            prompts: Texts or chats; a single text or chat is a list of one.
            timeout: Longest time for all of them, in seconds; None waits as long as it takes.
            system_prompt: Goes before every prompt.
            return_exceptions: Put a failed prompt's exception into its place, instead of raising.
            **sampling: Sampling parameters, such as `max_tokens=64`. `response_format` is a
                pydantic model class, or a dict as OpenAI's API has it.

        Returns:
            One response per prompt, in order. It is a str, or a list of str with `n` above 1; where
            `response_format` is a pydantic model class, instances of it.

        Raises:
            PartialFailureError: Some prompts failed; it has the results and the errors, in order.
            TimeoutError: It took longer than `timeout`. (`asyncio.TimeoutError` on Python 3.10.)
            TypeError: A sampling parameter is unknown.
            UnsupportedTaskError: There are no prompts, or one of them is none.
        """
        _check_sampling(sampling)
        _check_prompt("generate", prompts)
        each: list[Any] = [prompts] if _is_one(prompts) else list(prompts)
        answering = service_loop().run(self._generate(each, system_prompt, sampling))
        try:
            outcomes = await asyncio.wait_for(answering, timeout)
        except asyncio.TimeoutError:
            text = f"{len(each)} prompts were not answered within the timeout of {timeout} s"
            raise asyncio.TimeoutError(text) from None
        wanted = sampling.get("response_format")
        answers = [_parsed(outcome, wanted) for outcome in outcomes]
        if not return_exceptions:
            answers = list(_all_or_raise(answers))
        objects = is_model_class(wanted)
        return [
            answer
            if isinstance(answer, BaseException)
            else (answer[1] if objects else answer[0].response)
            for answer in answers
        ]

    async def _generate(
        self, prompts: Sequence[Any], system_prompt: str | None, sampling: Mapping[str, Any]
    ) -> list[Completion | BaseException]:
        await self._ensure_started()
        return await self._complete_all(prompts, system_prompt, sampling)

    async def stream(
        self, prompt: str | Messages, *, system_prompt: str | None = None, **sampling: Any
    ) -> AsyncGenerator[str, None]:
        """Yield the response to one prompt piece by piece, as it is generated.

        Args:
            prompt: A text or a chat.
            system_prompt: Goes before it.
            **sampling: Sampling parameters, such as `max_tokens=64`.

        Raises:
            PromptError: The model refused the prompt.
            ReplicaError: The server was lost; what has been yielded cannot be taken back.
            TaskCancelledError: The backend was shut down.
            TypeError: A sampling parameter is unknown.
            UnsupportedTaskError: It is not one prompt, or more than one response is asked for.
        """
        _check_sampling(sampling)
        task = {"uid": "stream", "prompt": prompt, "system_prompt": system_prompt, **sampling}
        answering = pieces_of(lambda on_text: self.answer({**task, "on_text": on_text}))
        async with aclosing(answering) as pieces:
            async for piece in pieces:
                yield piece

    def get_endpoint(self) -> str | None:
        """Return the URL of the HTTP server; None in engine mode and while it does not run."""
        gateway = self._service.gateway if self._service is not None else None
        return gateway.endpoint if gateway is not None else None

    @property
    def replicas(self) -> list[dict[str, Any]]:
        """The servers: index, state, address, node, gpus, pid, prompts in_flight, restarts."""
        replicas: list[dict[str, Any]] = self.get_statistics().get("replicas", [])
        return replicas

    def get_statistics(self) -> dict[str, Any]:
        """Return batches and prompts so far, the mean batch size, pending prompts, replicas."""
        return self._service.get_statistics() if self._service is not None else {}


_running: set[DragonVllmInferenceBackend] = set()
"""Backends that serve, HTTP clients perhaps, though the program may have let go of them."""


def _is_one(prompt: Any) -> bool:
    return isinstance(prompt, str) or isinstance(prompt[0], Mapping)


def _check_prompt(uid: str, prompt: Any) -> None:
    if isinstance(prompt, str) and prompt:
        return
    if isinstance(prompt, (list, tuple)) and prompt:
        one_chat = all(isinstance(item, Mapping) for item in prompt)
        if one_chat or all(isinstance(item, (str, list, tuple)) for item in prompt):
            return
    raise UnsupportedTaskError(
        uid,
        "a prompt is a non-empty string, a list of them, or chat messages "
        f"(dicts with 'role' and 'content'), not {prompt!r:.80}",
    )


def _check_stream(uid: str, task: Mapping[str, Any]) -> None:
    if not callable(task["on_text"]):
        raise UnsupportedTaskError(uid, f"'on_text' is not callable: {task['on_text']!r:.80}")
    if not _is_one(task["prompt"]) or task.get("n") not in (None, 1):
        raise UnsupportedTaskError(uid, "a stream is one response to one prompt")


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


_Answer = tuple[Completion, Any]
"""A completion, and the object that it describes where one was asked for."""


def _parsed(outcome: Completion | BaseException, response_format: Any) -> _Answer | BaseException:
    if isinstance(outcome, BaseException):
        return outcome
    try:
        return outcome, parsed_response(outcome, response_format)
    except PromptError as error:
        return error


def _all_or_raise(answers: Sequence[_Answer | BaseException]) -> list[_Answer]:
    errors = [a if isinstance(a, BaseException) else None for a in answers]
    if any(errors):
        results = [None if isinstance(a, BaseException) else a[0].response for a in answers]
        raise PartialFailureError(results, errors)
    return [a for a in answers if not isinstance(a, BaseException)]


def _result_fields(outcomes: Sequence[_Answer | BaseException], *, single: bool) -> dict[str, Any]:
    """The result fields of a task, of a single prompt or of a list of them."""
    answers = _all_or_raise(outcomes)
    completions = [completion for completion, _ in answers]

    def shaped(values: list[Any]) -> Any:
        return values[0] if single else values

    response = shaped([completion.response for completion in completions])
    fields = {
        "response": response,
        "stdout": response,
        "return_value": response,
        "usage": _total_usage(completions),
        "finish_reason": shaped([completion.finish_reason for completion in completions]),
    }
    if any(parsed is not None for _, parsed in answers):
        fields["parsed"] = shaped([parsed for _, parsed in answers])
    if any(completion.logprobs is not None for completion in completions):
        fields["response_logprobs"] = shaped([c.response_logprobs for c in completions])
    return fields


def _total_usage(completions: Sequence[Completion]) -> dict[str, int]:
    kinds = ("prompt_tokens", "completion_tokens", "total_tokens")
    return {kind: sum(c.usage.get(kind, 0) for c in completions) for kind in kinds}
