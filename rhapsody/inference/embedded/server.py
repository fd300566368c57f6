"""The server process: an embedded model, a replica's routes, and a watch on the parent process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from rhapsody.inference.embedded.batch_route import BatchRoutes
from rhapsody.inference.embedded.http import errors_as_json, json_response, read_object, require_key
from rhapsody.inference.embedded.model import DEFAULT_LABELS, DEFAULT_MAX_MODEL_LEN, NgramModel
from rhapsody.inference.embedded.openai_routes import OpenAIRoutes
from rhapsody.inference.embedded.pooling.routes import PoolingRoutes
from rhapsody.inference.embedded.scheduler import PromptScheduler
from rhapsody.inference.protocol.batch import WEIGHTS_PATH
from rhapsody.inference.protocol.errors import RequestError
from rhapsody.inference.protocol.process import (
    KEY_VARIABLE,
    MAX_BODY_BYTES,
    open_parent_pipe,
)
from rhapsody.waiting import done_within

logger = logging.getLogger(__name__)

# Time for running requests to finish after SIGTERM.
_SHUTDOWN_SECONDS = 2.0
# sun_path has 108 bytes with its null byte (macOS: 104).
_LONGEST_UDS = 107 if sys.platform == "linux" else 103

_METRICS = """\
# HELP rhapsody_embedded_prompt_tokens_total Tokens of accepted prompts.
# TYPE rhapsody_embedded_prompt_tokens_total counter
rhapsody_embedded_prompt_tokens_total {prompt_tokens}
# HELP rhapsody_embedded_generation_tokens_total Generated tokens.
# TYPE rhapsody_embedded_generation_tokens_total counter
rhapsody_embedded_generation_tokens_total {generation_tokens}
# HELP rhapsody_embedded_requests_total Prompts that were finished.
# TYPE rhapsody_embedded_requests_total counter
rhapsody_embedded_requests_total {finished}
# HELP rhapsody_embedded_requests_running Prompts that run.
# TYPE rhapsody_embedded_requests_running gauge
rhapsody_embedded_requests_running {running}
# HELP rhapsody_embedded_requests_waiting Prompts that wait to run.
# TYPE rhapsody_embedded_requests_waiting gauge
rhapsody_embedded_requests_waiting {waiting}
"""


@dataclass(frozen=True)
class ServerOptions:
    """The options of the command line.

    Args:
        model: The name that the model is served under.
        uds: Path of the Unix socket to listen on; None: a port.
        host: Address to listen on.
        port: Port to listen on, 0 for a free one.
        max_model_len: Maximum number of tokens of a prompt and a completion together.
        max_num_seqs: Number of prompts that run at once.
        seed: Seeds the requests that name no seed.
        labels: The labels that texts are classified by.
        token_delay: Seconds between tokens.
        start_delay: Seconds before the server listens.
        fail_at_start: For drills: fail with this message instead of listening.
    """

    model: str
    uds: str | None = None
    host: str = "127.0.0.1"
    port: int = 0
    max_model_len: int = DEFAULT_MAX_MODEL_LEN
    max_num_seqs: int = 256
    seed: int | None = None
    labels: tuple[str, ...] = DEFAULT_LABELS
    token_delay: float = 0.0
    start_delay: float = 0.0
    fail_at_start: str | None = None


class StartError(RuntimeError):
    """The server cannot start, with the reason as its message."""


def build_app(scheduler: PromptScheduler, model: str, key: str | None) -> web.Application:
    """Return the application with all routes.

    Args:
        scheduler: Runs the prompts, for as long as the application runs.
        model: The name that the model is served under.
        key: The key that every request must carry; None: no key is required.
    """

    async def run_scheduler(app: web.Application) -> AsyncIterator[None]:
        running = asyncio.create_task(scheduler.run(), name="scheduler")
        yield
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running

    async def health(request: web.Request) -> web.Response:
        return json_response({})

    async def metrics(request: web.Request) -> web.Response:
        text = _METRICS.format(
            prompt_tokens=scheduler.prompt_tokens,
            generation_tokens=scheduler.generation_tokens,
            finished=scheduler.finished,
            running=scheduler.running,
            waiting=scheduler.waiting,
        )
        return web.Response(text=text, headers={"Content-Type": "text/plain; version=0.0.4"})

    async def weights(request: web.Request) -> web.Response:
        path = (await read_object(request)).get("path")
        try:
            scheduler.model = await asyncio.to_thread(_model_of, str(path), scheduler.model)
        except (OSError, ValueError) as error:
            raise RequestError(f"{error}", "path") from None
        return json_response({})

    app = web.Application(
        middlewares=[errors_as_json, require_key(key)], client_max_size=MAX_BODY_BYTES
    )
    app.router.add_get("/health", health)
    app.router.add_get("/metrics", metrics)
    app.router.add_post(WEIGHTS_PATH, weights)
    OpenAIRoutes(scheduler, model).add_to(app.router)
    PoolingRoutes(scheduler, model).add_to(app.router)
    BatchRoutes(scheduler).add_to(app.router)
    app.cleanup_ctx.append(run_scheduler)
    return app


def _model_of(path: str, former: NgramModel) -> NgramModel:
    """Return a model that has learned the text of a file, which is all the weights that it has."""
    text = Path(path).read_text("utf-8")
    return NgramModel(text, former.max_model_len, former.labels)


async def serve(options: ServerOptions) -> None:
    """Serve until SIGTERM or SIGINT; exit at once when the parent process is gone.

    The address is written to stdout as one line of JSON as soon as the server listens.

    Args:
        options: The options of the command line.

    Raises:
        StartError: The server cannot listen there, or `fail_at_start` is set.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    pipe = _watch_parent(loop, options.uds)
    key = os.environ.pop(KEY_VARIABLE, None)
    try:
        if options.start_delay and await done_within(stop.wait(), options.start_delay):
            return
        if options.fail_at_start is not None:
            raise StartError(options.fail_at_start)
        model = NgramModel(None, options.max_model_len, options.labels)
        scheduler = PromptScheduler(model, options.max_num_seqs, options.token_delay, options.seed)
        # A client that disconnects cancels its handler, and with it its prompts.
        runner = web.AppRunner(
            build_app(scheduler, options.model, key),
            access_log=None,
            handler_cancellation=True,
            # aiohttp waits twice: before and after it closes the bodies of running requests.
            shutdown_timeout=_SHUTDOWN_SECONDS / 2,
        )
        await runner.setup()
        try:
            address = await _listen(runner, options)
            logger.info("embedded model %r listens on %s", options.model, address)
            sys.stdout.write(json.dumps({"listening": address}) + "\n")
            sys.stdout.flush()
            await stop.wait()
            logger.info("the server stops, with %d prompts running", scheduler.running)
        finally:
            await runner.cleanup()
    finally:
        _remove_socket(options.uds)
        if pipe is not None:
            loop.remove_reader(pipe)


async def _listen(runner: web.AppRunner, options: ServerOptions) -> str:
    if options.uds is None:
        try:
            await web.TCPSite(runner, options.host, options.port).start()
        except (OSError, OverflowError) as error:
            raise StartError(f"cannot listen on {options.host}:{options.port}: {error}") from error
        host, port = runner.addresses[0][:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    size = len(os.fsencode(options.uds))
    if size > _LONGEST_UDS:
        raise StartError(
            f"the socket path {options.uds!r} must have at most {_LONGEST_UDS} bytes, got {size}"
        )
    # Other users must never be able to connect, not even between bind and chmod.
    before = os.umask(0o077)
    try:
        await web.UnixSite(runner, options.uds).start()
    except OSError as error:
        raise StartError(f"cannot listen on {options.uds}: {error}") from error
    finally:
        os.umask(before)
    return f"unix:{options.uds}"


def _watch_parent(loop: asyncio.AbstractEventLoop, uds: str | None) -> int | None:
    """Exit at once when the parent closes its end of the inherited pipe."""
    try:
        pipe = open_parent_pipe()
        if pipe is not None:
            loop.add_reader(pipe, _read_parent, pipe, uds)
    except (ValueError, OSError) as error:
        raise StartError(str(error)) from error
    return pipe


def _read_parent(pipe: int, uds: str | None) -> None:
    if not os.read(pipe, 4096):
        _remove_socket(uds)
        logger.error("the parent process is gone, the server exits")
        os._exit(1)


def _remove_socket(uds: str | None) -> None:
    if uds is None:
        return
    with contextlib.suppress(OSError):
        if stat.S_ISSOCK(os.stat(uds).st_mode):
            os.unlink(uds)
