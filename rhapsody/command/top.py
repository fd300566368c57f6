"""`rhapsody top`: what a model server in another terminal does."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Annotated, NamedTuple
from urllib.parse import urlsplit

import typer
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.live import Live
from rich.text import Text

from rhapsody.errors import ConfigurationError, RhapsodyError

__all__ = ["Reading", "top"]

LONGEST_WAIT = 10.0
"""Seconds that the server may take to respond."""


class Reading(NamedTuple):
    """The counters of a server at one time."""

    at: float
    prompts: dict[str, float]
    tokens: dict[str, float]
    pending: float
    replicas: dict[str, float]
    wanted: float | None
    requests: float
    running: float
    generated: float


def top(
    url: Annotated[
        str, typer.Argument(help="Address of the server, as 'rhapsody serve' prints it.")
    ],
    interval: Annotated[float, typer.Option(help="Seconds between two readings.", min=0.1)] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print one reading and exit.")] = False,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="RHAPSODY_API_KEY", help="Key of the server.", show_default=False),
    ] = None,
) -> None:
    """Show prompts, tokens and replicas of a running model server, until Ctrl-C.

    The server is one of 'rhapsody serve', or of a program with an inference backend in server mode.
    """
    address = _metrics_url(url)
    before = _read(address, api_key)
    if once:
        typer.echo(_describe(before, None))
        return
    console = Console()
    try:
        with Live(console=console, auto_refresh=False) as live:
            live.update(Text(_describe(before, None)), refresh=True)
            while True:
                time.sleep(interval)
                now = _read(address, api_key)
                text = _describe(now, before)
                if console.is_terminal:
                    live.update(Text(text), refresh=True)
                else:
                    typer.echo(text)
                before = now
    except KeyboardInterrupt:
        return


def _metrics_url(url: str) -> str:
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigurationError(
            f"URL must be the address of a server such as http://127.0.0.1:8000, got '{url}'"
        )
    return f"{parts.scheme}://{parts.netloc}/metrics"


def _read(address: str, api_key: str | None) -> Reading:
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    request = urllib.request.Request(address, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=LONGEST_WAIT) as response:
            return _parse(response.read().decode())
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            why = "the key is wrong" if api_key else "it needs a key"
            raise RhapsodyError(
                f"{address} refused the request: {why}; set RHAPSODY_API_KEY or pass --api-key"
            ) from None
        raise RhapsodyError(f"{address} responded with status {error.code}") from None
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise RhapsodyError(f"no server responds at {address}: {reason}") from None


def _parse(text: str) -> Reading:
    totals: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = [value for name, value in sample.labels.items() if name != "model"]
            label = labels[0] if labels else ""  # counts of several models are added up
            of_name = totals.setdefault(sample.name, {})
            of_name[label] = of_name.get(label, 0.0) + sample.value

    def total(name: str) -> float:
        return sum(totals.get(name, {}).values())

    if "rhapsody_pending_prompts" not in totals:
        raise RhapsodyError("the server has no metrics of Rhapsody; is it another program?")
    return Reading(
        time.monotonic(),
        totals.get("rhapsody_prompts_total", {}),
        totals.get("rhapsody_tokens_total", {}),
        totals["rhapsody_pending_prompts"][""],
        totals.get("rhapsody_replicas", {}),
        total("rhapsody_replicas_wanted") if "rhapsody_scale_events" in totals else None,
        total("vllm:request_success_total") + total("rhapsody_embedded_requests_total"),
        total("vllm:num_requests_running") + total("rhapsody_embedded_requests_running"),
        total("vllm:generation_tokens_total") + total("rhapsody_embedded_generation_tokens_total"),
    )


def _describe(now: Reading, before: Reading | None) -> str:
    wanted = "" if now.wanted is None else f", {now.wanted:.0f} wanted"
    lines = [
        "replicas  " + (_counts(now.replicas) or "none") + wanted,
        f"pending   {now.pending:.0f} prompts",
    ]

    def rate(count: Callable[[Reading], float]) -> str:
        if before is None or now.at <= before.at:
            return ""
        return f"  ({max(0.0, count(now) - count(before)) / (now.at - before.at):.1f}/s)"

    # The servers count all requests; prompts of tasks and of /generate are counted here as well.
    served = now.requests or now.running
    if now.prompts or not served:
        lines += [
            "prompts   " + (_counts(now.prompts) or "none yet") + rate(lambda r: _sum(r.prompts)),
            "tokens    " + (_counts(now.tokens) or "none yet") + rate(lambda r: _sum(r.tokens)),
        ]
    if served:
        lines += [
            f"requests  {now.requests:.0f} done, {now.running:.0f} running"
            + rate(lambda r: r.requests),
            f"generated {now.generated:.0f} tokens" + rate(lambda r: r.generated),
        ]
    return "\n".join(lines)


def _sum(counts: dict[str, float]) -> float:
    return sum(counts.values())


def _counts(values: dict[str, float]) -> str:
    return ", ".join(f"{value:.0f} {name}" for name, value in sorted(values.items()) if value)
