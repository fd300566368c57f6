import subprocess
import sys
import textwrap

import pytest

MADE_LATE = """
def late():
    session = Session([get_backend("concurrent")])
"""

STARTED_LATE = """
session = Session([get_backend("concurrent")])

def late():
    session.submit(int, 3).result()
"""

OPEN = """
session = Session([get_backend("concurrent")])
assert session.submit(int, 3).result() == 3

def late():
    session.submit(int, 3).result()
"""

END = """
def main():
    threading.main_thread().join()
    try:
        late()
    except RhapsodyError as error:
        print(error)

threading.Thread(target=main).start()
"""


@pytest.mark.parametrize("program", [MADE_LATE, STARTED_LATE, OPEN])
def test_use_after_the_end_of_the_main_thread_is_refused_in_one_sentence(program: str) -> None:
    begin = """
    import threading
    from rhapsody import RhapsodyError, Session, get_backend
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(begin) + program + END],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert run.stdout.startswith("the main thread of this program has ended"), run
    assert run.stderr == ""
