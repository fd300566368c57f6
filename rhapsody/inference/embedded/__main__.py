"""The command line: `python -m rhapsody.inference.embedded --model NAME --port 0`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Callable

from rhapsody.inference.embedded.model import DEFAULT_LABELS, DEFAULT_MAX_MODEL_LEN
from rhapsody.inference.embedded.server import ServerOptions, StartError, serve

logger = logging.getLogger(__name__)


def _at_least(low: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        number = int(text)
        if number < low:
            raise argparse.ArgumentTypeError(f"must be at least {low}, got {number}")
        return number

    parse.__name__ = "int"  # argparse names the type in its messages
    return parse


def _milliseconds(text: str) -> float:
    number = float(text)
    if not 0 <= number < 1e9:
        raise argparse.ArgumentTypeError(f"must be a number of at least 0, got {text}")
    return number / 1000


def _labels(text: str) -> tuple[str, ...]:
    labels = tuple(label.strip() for label in text.split(","))
    if not all(labels) or len(set(labels)) < len(labels):
        raise argparse.ArgumentTypeError(
            f"must be different names, with commas between; got {text}"
        )
    return labels


def parse_options(arguments: list[str]) -> ServerOptions:
    """Parse the command line; an error ends the process with status 2.

    Args:
        arguments: The arguments without the program's name.
    """
    parser = argparse.ArgumentParser(
        prog="python -m rhapsody.inference.embedded",
        description="Serve a small n-gram model (not a real one) over a replica's routes.",
    )
    parser.add_argument("--model", required=True, metavar="NAME", help="name of the model")
    address = parser.add_mutually_exclusive_group(required=True)
    address.add_argument("--uds", metavar="PATH", help="Unix socket to listen on")
    address.add_argument("--port", type=_at_least(0), help="port to listen on, 0 for a free one")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--max-model-len", type=_at_least(2), default=DEFAULT_MAX_MODEL_LEN)
    parser.add_argument("--max-num-seqs", type=_at_least(1), default=256)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--labels", type=_labels, default=DEFAULT_LABELS, help="names, by commas")
    for name, moment in (("--token-delay-ms", "between tokens"), ("--start-delay-ms", "at start")):
        help_text = f"for tests and drills: delay {moment}"
        parser.add_argument(name, type=_milliseconds, default=0.0, metavar="MS", help=help_text)
    parser.add_argument("--fail-at-start", metavar="MESSAGE", help="for drills: fail with this")
    given = parser.parse_args(arguments)
    return ServerOptions(
        model=given.model,
        uds=given.uds,
        host=given.host,
        port=given.port or 0,
        max_model_len=given.max_model_len,
        max_num_seqs=given.max_num_seqs,
        seed=given.seed,
        labels=given.labels,
        token_delay=given.token_delay_ms,
        start_delay=given.start_delay_ms,
        fail_at_start=given.fail_at_start,
    )


def main() -> int:
    """Run the server.

    Returns:
        The exit status: 0 after a signal to stop, 1 if the server could not start.
    """
    options = parse_options(sys.argv[1:])
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    try:
        asyncio.run(serve(options))
    except StartError as error:
        logger.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
