"""The relay of standard output and error, in a separate process."""

import os
import signal
import subprocess
import sys
import textwrap

PROGRAM = """
    import subprocess, sys
    from rhapsody.backends.dragon.stdio_relay import relay_stdio

    relay_stdio()
    child = subprocess.Popen(["/bin/sleep", "60.75"])
    print("from python", child.pid)
    subprocess.run(["/bin/echo", "from a child"])
    print("an error", file=sys.stderr)
    print("last words", end="")
"""


def test_output_is_relayed_and_a_child_does_not_hold_the_pipe_open() -> None:
    program = [sys.executable, "-c", textwrap.dedent(PROGRAM)]
    # Returns only when both pipes are closed, although the child still runs.
    run = subprocess.run(program, capture_output=True, text=True, check=True, timeout=30)
    lines = run.stdout.splitlines()
    child = int(next(line for line in lines if "from python" in line).split()[-1])
    os.kill(child, signal.SIGKILL)
    assert sorted(lines) == ["from a child", f"from python {child}last words"] or sorted(lines) == [
        "from a child",
        f"from python {child}",
        "last words",
    ]
    assert run.stderr == "an error\n"
