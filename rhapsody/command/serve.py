"""`rhapsody serve`: the HTTP server of models from the shell."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rhapsody.allocation import is_under_dragon
from rhapsody.errors import ConfigurationError, RhapsodyError

if TYPE_CHECKING:
    from rhapsody.backends import DragonVllmInferenceBackend, InferenceGateway
    from rhapsody.report.live_page import LivePage

__all__ = ["serve"]

REFRESH_SECONDS = 1.0
PLACEMENT, BATCHING, SERVER, FAULTS = "Placement", "Batching", "HTTP server", "Faults"
"""The groups of options in the help."""


def serve(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...", help="Names or paths of the models.", show_default=False
        ),
    ],
    engine: Annotated[
        str, typer.Option(help="'vllm', or 'embedded', a text generator that needs no GPU.")
    ] = "vllm",
    config_file: Annotated[
        Path | None, typer.Option(help="YAML file with the engine's own options.")
    ] = None,
    launcher: Annotated[
        str | None,
        typer.Option(
            help="'local': on this machine; 'dragon': on the nodes of an allocation. "
            "Default: 'dragon' if the dragon command started this.",
            rich_help_panel=PLACEMENT,
        ),
    ] = None,
    replicas: Annotated[
        str | None,
        typer.Option(
            help="Servers on each node; instead of --num-gpus. MIN:MAX: servers in all, whose "
            "number follows the load.",
            metavar="N|MIN:MAX",
            rich_help_panel=PLACEMENT,
        ),
    ] = None,
    scale_up_after: Annotated[
        float,
        typer.Option(
            help="Seconds for which more servers must be needed.", rich_help_panel=PLACEMENT
        ),
    ] = 5.0,
    scale_down_after: Annotated[
        float,
        typer.Option(
            help="Seconds for which fewer servers must be needed.", rich_help_panel=PLACEMENT
        ),
    ] = 300.0,
    num_nodes: Annotated[
        int, typer.Option(help="Nodes to serve on.", rich_help_panel=PLACEMENT)
    ] = 1,
    num_gpus: Annotated[
        int | None,
        typer.Option(
            help="GPUs on each node; 0: on the CPU. Default: 1.", rich_help_panel=PLACEMENT
        ),
    ] = None,
    tp_size: Annotated[
        int, typer.Option(help="GPUs that one server spans.", rich_help_panel=PLACEMENT)
    ] = 1,
    nodes_per_replica: Annotated[
        int | None,
        typer.Option(
            help="Nodes that one server spans. Default: 1, or as many as --tp-size needs.",
            rich_help_panel=PLACEMENT,
            show_default=False,
        ),
    ] = None,
    offset: Annotated[
        int, typer.Option(help="First node to use, from 0.", rich_help_panel=PLACEMENT)
    ] = 0,
    host: Annotated[
        str, typer.Option(help="Address or name to listen on.", rich_help_panel=SERVER)
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="Port; 0: any free port.", rich_help_panel=SERVER)
    ] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="RHAPSODY_API_KEY",
            help="Key that clients must send. Other users of this machine can read options, so "
            "prefer the variable.",
            rich_help_panel=SERVER,
            show_default=False,
        ),
    ] = None,
    cors_origins: Annotated[
        list[str] | None,
        typer.Option(
            "--cors-origin",
            help="Origin of web pages that may use the server; may be repeated.",
            rich_help_panel=SERVER,
        ),
    ] = None,
    batch_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder that keeps the files and batches of clients.", rich_help_panel=SERVER
        ),
    ] = None,
    max_batch_size: Annotated[
        int, typer.Option(help="Most prompts in a batch.", rich_help_panel=BATCHING)
    ] = 1024,
    max_batch_wait_ms: Annotated[
        float,
        typer.Option(
            help="Longest wait for a batch, in ms, while all servers are busy.",
            rich_help_panel=BATCHING,
        ),
    ] = 500,
    max_pending: Annotated[
        int,
        typer.Option(
            help="Most prompts queued and in flight; beyond it clients get a 503.",
            rich_help_panel=BATCHING,
        ),
    ] = 65536,
    max_retries: Annotated[
        int,
        typer.Option(
            help="How often a prompt is sent again if its server dies.", rich_help_panel=FAULTS
        ),
    ] = 2,
    max_restarts: Annotated[
        int,
        typer.Option(help="How often in a row a server is restarted.", rich_help_panel=FAULTS),
    ] = 5,
    startup_timeout: Annotated[
        float, typer.Option(help="Seconds until a server must be ready.", rich_help_panel=FAULTS)
    ] = 600.0,
    health_interval: Annotated[
        float, typer.Option(help="Seconds between health checks.", rich_help_panel=FAULTS)
    ] = 2.0,
    hang_timeout: Annotated[
        float,
        typer.Option(
            help="Seconds without a reaction until a server is restarted.", rich_help_panel=FAULTS
        ),
    ] = 60.0,
    page: Annotated[
        bool,
        typer.Option(
            "--page",
            help="Also serve a live page to this machine, at an address with a secret in it.",
        ),
    ] = False,
    drain: Annotated[
        float,
        typer.Option(help="Seconds for pending prompts to finish at the end."),
    ] = 10.0,
) -> None:
    """Serve models over HTTP, with the routes of OpenAI, until Ctrl-C.

    Several models share the address, and each gets servers as the options say.

    Example: rhapsody serve Qwen/Qwen2.5-0.5B-Instruct --port 8000

    Without a GPU and without a model: rhapsody serve demo --engine embedded
    """
    if replicas is not None and num_gpus is not None:
        raise ConfigurationError(
            "--replicas and --num-gpus exclude each other; --replicas N stands for N x tp-size GPUs"
        )
    bounds: tuple[int, int] | None = None
    if replicas is not None:
        number, bounds = parse_replicas(replicas)
        num_gpus = -(-number // num_nodes) * tp_size if bounds else number * tp_size
    listen: dict[str, Any] = {
        "host": host,
        "port": port,
        "api_key": api_key,
        "cors_origins": cors_origins or (),
        "batch_dir": batch_dir,
    }
    options: dict[str, Any] = {
        "num_nodes": num_nodes,
        "num_gpus": 1 if num_gpus is None else num_gpus,
        "tp_size": tp_size,
        "nodes_per_replica": nodes_per_replica,
        "offset": offset,
        "max_batch_size": max_batch_size,
        "max_batch_wait_ms": max_batch_wait_ms,
        "engine": engine,
        "launcher": launcher or ("dragon" if is_under_dragon() else "local"),
        "max_pending": max_pending,
        "max_retries": max_retries,
        "max_restarts": max_restarts,
        "startup_timeout": startup_timeout,
        "health_interval": health_interval,
        "hang_timeout": hang_timeout,
        "replicas": bounds,
        "scale_up_after": scale_up_after,
        "scale_down_after": scale_down_after,
    }
    try:
        asyncio.run(_serve(_server(config_file, models, options, listen), models, drain, page))
    except RhapsodyError as error:
        raise ConfigurationError(in_terms_of_options(str(error))) from error


def in_terms_of_options(message: str) -> str:
    """Return an error message with "--num-gpus 0" in place of "num_gpus=0", and so on."""
    options = _options()
    names = sorted(options, key=len, reverse=True)
    # Without "=", only names that are not English words, such as "num_gpus".
    pattern = rf"\b({'|'.join(names)})=|\b({'|'.join(n for n in names if '_' in n)})\b"

    def option(found: re.Match[str]) -> str:
        return f"{options[found[1]]} " if found[1] else options[found[2]]

    return re.sub(pattern, option, message)


def _options() -> dict[str, str]:
    """Return the options of the command, such as "--cors-origin", by the parameters of `serve`."""
    app = typer.Typer(add_completion=False)
    app.command()(serve)
    parameters = typer.main.get_command(app).params
    return {
        str(parameter.name): parameter.opts[0]
        for parameter in parameters
        if parameter.opts[0].startswith("--") and parameter.name != "help"
    }


def _server(
    config_file: Path | None,
    models: Sequence[str],
    options: Mapping[str, Any],
    listen: Mapping[str, Any],
) -> DragonVllmInferenceBackend | InferenceGateway:
    from rhapsody.backends import DragonVllmInferenceBackend, InferenceGateway

    if len(models) == 1:
        return DragonVllmInferenceBackend(config_file, models[0], **options, **listen)
    backends = [
        DragonVllmInferenceBackend(config_file, model, **options, use_service=False, name=model)
        for model in models
    ]
    return InferenceGateway(backends, **listen)


def parse_replicas(text: str) -> tuple[int, tuple[int, int] | None]:
    """Return the most servers and the bounds, from "4" or "1:4".

    Raises:
        ConfigurationError: The text is neither.
    """
    fewest, colon, most = text.rpartition(":")
    try:
        number, least = int(most), int(fewest) if colon else 1
    except ValueError:
        number = least = -1
    if not 0 <= least <= number or number < 1:
        raise ConfigurationError(
            f"--replicas must be a number such as 2, or the fewest and the most servers such as "
            f"1:4, got '{text}'"
        )
    return number, (least, number) if colon else None


async def _serve(
    backend: DragonVllmInferenceBackend | InferenceGateway,
    models: Sequence[str],
    drain: float,
    with_page: bool,
) -> None:
    """Serve until a signal; a second one ends the program at once."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def on_signal(sig: signal.Signals) -> None:
        loop.remove_signal_handler(sig)  # the next one has its default effect
        stop.set()

    for sig in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(sig, on_signal, sig)
    _say(f"Starting {', '.join(models)} ...")
    page: LivePage | None = None
    starting = asyncio.ensure_future(backend.initialize())
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            key = "with its key" if backend.config.api_key else "without a key"
            _say(f"Serving at {backend.get_endpoint()}/v1 {key}. Ctrl-C stops it.")
            page = _serve_page(backend, models, with_page)
            await _show_status(backend, stop)
    finally:
        for task in (starting, stopping):
            task.cancel()
        pending = backend.get_statistics().get("pending_prompts", 0)
        if stop.is_set():
            _say(f"Stopping: {pending} prompts pending, up to {drain:g} s. Ctrl-C ends at once.")
        await backend.shutdown(drain if stop.is_set() and pending else 0)
        if page is not None:
            await page.stop()
        await asyncio.gather(starting, stopping, return_exceptions=True)
    _say("Stopped.")


def _serve_page(
    backend: DragonVllmInferenceBackend | InferenceGateway, models: Sequence[str], wanted: bool
) -> LivePage | None:
    """Serve the live page, if the option or the variable RHAPSODY_PAGE asks for it."""
    if not wanted and not os.environ.get("RHAPSODY_PAGE"):
        return None
    from rhapsody.report.live_page import serve_if_wanted, serve_page
    from rhapsody.report.page import PageSource
    from rhapsody.report.runs import BackendRun

    several = getattr(backend, "backends", None)
    runs = [BackendRun(one) for one in several or [backend]]

    def clients() -> list[dict[str, Any]]:  # with one model, its own statistics have them
        return backend.get_statistics().get("clients", []) if several else []

    source = PageSource(", ".join(models), lambda: runs, clients=clients)
    page = serve_if_wanted(backend, source)
    if page is None and wanted:
        page = serve_page(backend, source)
        _say(f"Live page: {page.url}")
    return page


async def _show_status(
    backend: DragonVllmInferenceBackend | InferenceGateway, stop: asyncio.Event
) -> None:
    """Show one line of status until the server is to stop, if standard error is a terminal."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(stderr=True)
    if not console.is_terminal:
        await stop.wait()
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while not stop.is_set():
            live.update(Text(status_line(backend.get_statistics())), refresh=True)
            waiting = asyncio.ensure_future(stop.wait())
            await asyncio.wait({waiting}, timeout=REFRESH_SECONDS)
            waiting.cancel()


def status_line(statistics: dict[str, Any]) -> str:
    """Return "replicas: 2 ready | pending: 3 | prompts: 120 in 14 batches"."""
    replicas = statistics.get("replicas", [])
    states = Counter(str(replica["state"]).lower() for replica in replicas)
    counts = ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "none"
    restarts = sum(replica["restarts"] for replica in replicas)
    prompts, batches = statistics.get("batched_prompts", 0), statistics.get("batches", 0)
    scaling = statistics.get("scaling")
    wanted = f", {scaling['wanted']} wanted" if scaling else ""
    parts = [
        f"replicas: {counts}{wanted}" + (f" ({restarts} restarts)" if restarts else ""),
        f"pending: {statistics.get('pending_prompts', 0)}",
        f"prompts: {prompts} in {batches} batches",
    ]
    return " | ".join(parts)


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)  # noqa: T201 - a command speaks to its user
