"""Chunks of calls."""

import subprocess
import sys

from rhapsody.backends.chunks import call_each, call_each_async


async def scale(value: int, factor: int) -> int:
    return value * factor


async def test_results_are_in_the_order_of_the_calls() -> None:
    assert call_each(pow, [(2, 3), (3, 2)]) == [8, 9]
    assert await call_each_async(scale, [(2, 3), (3, 3)]) == [6, 9]


def test_workers_import_it_without_the_interface_of_sessions() -> None:
    code = "import sys, rhapsody.backends.chunks; print('pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
