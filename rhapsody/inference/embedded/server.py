"""The server process: one embedded model, the routes of a replica, and a watch on the parent."""

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

from aiohttp import web

from rhapsody.inference.embedded.batch_route import BatchRoute
from rhapsody.inference.embedded.http import demand_key, errors_as_json, json_response
from rhapsody.inference.embedded.model import DEFAULT_MAX_MODEL_LEN, NgramModel
from rhapsody.inference.embedded.openai_routes import OpenAIRoutes
from rhapsody.inference.embedded.scheduler import Scheduler
from rhapsody.waiting import done_within

logger = logging.getLogger(__name__)

KEY_VARIABLE = "RHAPSODY_REPLICA_KEY"
PARENT_VARIABLE = "RHAPSODY_PARENT_FD"
# A batch of 1,024 prompts as long as the default context allows is about 10 MiB.
_MAX_BODY = 64 * 1024 * 1024
# What running requests are given to finish after SIGTERM.
_SHUTDOWN_SECONDS = 2.0
# sun_path has 108 bytes with the closing zero (macOS: 104).
_LONGEST_UDS = 107 if sys.platform == "linux" else 103

_METRICS = """\
# HELP rhapsody_embedded_prompt_tokens_total Tokens of the prompts taken.
# TYPE rhapsody_embedded_prompt_tokens_total counter
rhapsody_embedded_prompt_tokens_total {prompt_tokens}
# HELP rhapsody_embedded_generation_tokens_total Tokens written.
# TYPE rhapsody_embedded_generation_tokens_total counter
rhapsody_embedded_generation_tokens_total {generation_tokens}
# HELP rhapsody_embedded_requests_running Prompts being answered.
# TYPE rhapsody_embedded_requests_running gauge
rhapsody_embedded_requests_running {running}
# HELP rhapsody_embedded_requests_waiting Prompts waiting for their turn.
# TYPE rhapsody_embedded_requests_waiting gauge
rhapsody_embedded_requests_waiting {waiting}
"""


@dataclass(frozen=True)
class ServerOptions:
    """What the command line says.

    Args:
        model: The name that the model is served under.
        uds: Path of the Unix socket to listen on; None for a port.
        host: Address to listen on.
        port: Port to listen on, 0 for any free one.
        max_model_len: Most tokens of a prompt and its answer together.
        max_num_seqs: How many prompts are answered at once.
        seed: Where requests without a seed take theirs from.
        token_delay: Seconds between tokens.
        start_delay: Seconds before it listens.
        fail_at_start: For drills: die with this message instead of listening.
    """

    model: str
    uds: str | None = None
    host: str = "127.0.0.1"
    port: int = 0
    max_model_len: int = DEFAULT_MAX_MODEL_LEN
    max_num_seqs: int = 256
    seed: int | None = None
    token_delay: float = 0.0
    start_delay: float = 0.0
    fail_at_start: str | None = None


class StartError(RuntimeError):
    """The server cannot start; the message says why."""


def build_app(scheduler: Scheduler, model: str, key: str | None) -> web.Application:
    """Put the routes together.

    Args:
        scheduler: Where the prompts go; it runs as long as the application does.
        model: The name that the model is served under.
        key: The secret that every request must bring; None asks for none.

    Returns:
        The application.
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
            running=scheduler.running,
            waiting=scheduler.waiting,
        )
        return web.Response(text=text, headers={"Content-Type": "text/plain; version=0.0.4"})

    app = web.Application(middlewares=[errors_as_json, demand_key(key)], client_max_size=_MAX_BODY)
    app.router.add_get("/health", health)
    app.router.add_get("/metrics", metrics)
    OpenAIRoutes(scheduler, model).add_to(app.router)
    BatchRoute(scheduler).add_to(app.router)
    app.cleanup_ctx.append(run_scheduler)
    return app


async def serve(options: ServerOptions) -> None:
    """Serve until SIGTERM or SIGINT; end the process at once when the parent is gone.

    The address is written to stdout as one line of JSON once requests are answered there.

    Args:
        options: What to serve and where.

    Raises:
        StartError: It cannot listen there, or was told to fail.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    watched = _watch_parent(loop, options.uds)
    key = os.environ.pop(KEY_VARIABLE, None)
    try:
        if options.start_delay and await done_within(stop.wait(), options.start_delay):
            return
        if options.fail_at_start is not None:
            raise StartError(options.fail_at_start)
        model = NgramModel(max_model_len=options.max_model_len)
        scheduler = Scheduler(model, options.max_num_seqs, options.token_delay, options.seed)
        # A client that goes away ends its handler, and with it the answers it waited for.
        runner = web.AppRunner(
            build_app(scheduler, options.model, key),
            access_log=None,
            handler_cancellation=True,
            # Granted twice: before and after aiohttp closes the bodies of running requests.
            shutdown_timeout=_SHUTDOWN_SECONDS / 2,
        )
        await runner.setup()
        try:
            address = await _listen(runner, options)
            logger.info("embedded model %r listening on %s", options.model, address)
            sys.stdout.write(json.dumps({"listening": address}) + "\n")
            sys.stdout.flush()
            await stop.wait()
            logger.info("stopping: %d prompts running", scheduler.running)
        finally:
            await runner.cleanup()
    finally:
        _remove_socket(options.uds)
        if watched is not None:
            loop.remove_reader(watched)


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
            f"the socket path {options.uds!r} has {size} bytes, at most {_LONGEST_UDS} are possible"
        )
    # The socket is for its owner alone from its first moment on.
    before = os.umask(0o077)
    try:
        await web.UnixSite(runner, options.uds).start()
    except OSError as error:
        raise StartError(f"cannot listen on {options.uds}: {error}") from error
    finally:
        os.umask(before)
    return f"unix:{options.uds}"


def _watch_parent(loop: asyncio.AbstractEventLoop, uds: str | None) -> int | None:
    """End the process when the other end of the inherited pipe is closed."""
    text = os.environ.pop(PARENT_VARIABLE, None)
    if text is None:
        return None

    def look() -> None:
        if not os.read(pipe, 4096):
            _remove_socket(uds)
            logger.error("the parent process is gone, ending")
            os._exit(1)

    try:
        pipe = int(text)
        os.set_inheritable(pipe, False)
        loop.add_reader(pipe, look)
    except (ValueError, OSError) as error:
        raise StartError(
            f"{PARENT_VARIABLE} must be the number of the open read end of a pipe, "
            f"got {text!r}: {error}"
        ) from error
    return pipe


def _remove_socket(uds: str | None) -> None:
    if uds is None:
        return
    with contextlib.suppress(OSError):
        if stat.S_ISSOCK(os.stat(uds).st_mode):
            os.unlink(uds)
