"""Run benchmarks, print their table, and renew what docs/ has of it: `make bench [BENCH=NAMES]`.

Every figure is a ratio, or a difference, of things measured in the same run, so that tables of
different machines can be compared. Each benchmark runs in a process of its own.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence

from benchmarks.launch import BENCHMARKS, run
from benchmarks.machine import this_machine
from benchmarks.processes import ROOT
from benchmarks.publish import publish
from benchmarks.results import Results
from benchmarks.tables import markdown


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks named, or all; returns 1 where one could not be measured."""
    names = _names(arguments)
    signal.signal(signal.SIGTERM, _stop)
    results = Results(machine=this_machine())
    for turn, name in enumerate(names, 1):
        _say(f"[{turn}/{len(names)}] {name}: {BENCHMARKS[name].about}")
        result = results.benchmarks[name] = run(name, BENCHMARKS[name])
        for problem in result.problems:
            _say(f"    {problem.what} not measured: {problem.reason}")
        _say(f"    {result.seconds:.0f} s")
    print(markdown(results))
    _say(publish(results, ROOT, list(BENCHMARKS)))
    return int(any(result.problems for result in results.benchmarks.values()))


def _names(arguments: Sequence[str] | None) -> list[str]:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog="\n".join(f"  {name:10}{one.about}" for name, one in BENCHMARKS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="which ones; all where none")
    wanted: list[str] = parser.parse_args(arguments).names
    if unknown := set(wanted) - set(BENCHMARKS):
        parser.error(f"no benchmark {min(unknown)!r}; there are {', '.join(BENCHMARKS)}")
    return [name for name in BENCHMARKS if name in wanted or not wanted]


def _stop(number: int, _frame: object) -> None:
    """End what runs, and then this: a second signal must not interrupt that."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
