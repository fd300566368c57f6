"""Run all benchmarks and print one Markdown table: `python -m benchmarks [NAME ...]`.

Every number is a ratio, or a difference, of things measured in the same run, so that tables of
different machines can be compared.
"""

from __future__ import annotations

import asyncio
import importlib.util
import sys

NAMES = ["session", "batcher", "engine"]
if importlib.util.find_spec("distributed") is not None:
    NAMES.append("dask")
if importlib.util.find_spec("dragon") is not None:
    NAMES.append("dragon")
if importlib.util.find_spec("vllm") is not None:
    NAMES.append("inference")


def main() -> int:
    """Run the benchmarks named on the command line, or all of them."""
    names = sys.argv[1:] or NAMES
    if {"-h", "--help"} & set(names):
        print(f"{__doc__}\nNames: {', '.join(NAMES)}")
        return 0
    if unknown := set(names) - set(NAMES):
        print(f"no benchmark {min(unknown)!r}; there are {', '.join(NAMES)}", file=sys.stderr)
        return 2
    print("| benchmark | what | ratio | measured |\n| --- | --- | --- | --- |")
    for name in names:
        module = importlib.import_module(f"benchmarks.{name}")
        for row in asyncio.run(module.measure()):
            print("| " + " | ".join((name, *row)) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
