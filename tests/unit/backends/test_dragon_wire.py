"""What of a task goes to a worker: functions by name or by value."""

import enum
import functools
import os
import pickle
import sys
import time
from collections.abc import Callable
from typing import Any

import cloudpickle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhapsody.api.errors import TaskExecutionError
from rhapsody.backends import dragon_wire as wire
from rhapsody.backends.executables import Executable
from rhapsody.testing import samples


def test_a_function_of_a_module_travels_by_name_each_time() -> None:
    first, second = (wire.dump_function("task", samples.add) for _ in range(2))
    assert first == second == cloudpickle.dumps(samples.add, protocol=5)
    assert pickle.loads(first) is samples.add


def test_a_function_travels_with_the_values_that_it_has_now() -> None:
    values = [1]

    def total() -> int:
        return sum(values)

    before = wire.dump_function("task", total)
    values.append(2)
    after = wire.dump_function("task", total)
    assert [pickle.loads(data)() for data in (before, after)] == [1, 3]


def test_a_function_of_the_script_itself_travels_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    def square(number: int) -> int:
        return number * number

    square.__module__, square.__qualname__ = "__main__", "square"
    monkeypatch.setattr(sys.modules["__main__"], "square", square, raising=False)
    data = wire.dump_function("task", square)
    monkeypatch.delattr(sys.modules["__main__"], "square")
    rebuilt: Callable[[int], int] = pickle.loads(data)
    assert rebuilt(3) == 9


class Slow:
    def __reduce__(self) -> Any:
        time.sleep(0.01)
        return int, ()


def test_a_task_is_small_once_its_function_is_known_to_take_no_time() -> None:
    light, slow, large = 1, Slow(), b"x" * 10_000
    for function, is_light in (
        (lambda: light, True),
        (lambda: slow, False),
        (lambda: large, False),
        (os.getcwd, False),
        (functools.partial(print, slow), False),
    ):
        task = {"function": function, "args": (1,)}
        assert not wire.is_small(task)
        for _ in range(5):  # the machine may be busy
            wire.dump_function("task", function)
            if wire.is_small(task) == is_light:
                break
        assert wire.is_small(task) == is_light
        assert not wire.is_small({**task, "args": ([],)})
    assert wire.is_small({"executable": "true"})


def test_texts_of_a_class_of_their_own_travel_as_texts() -> None:
    class Program(str, enum.Enum):  # which no other process knows
        TRUE = "/bin/true"

    task = {"uid": Program.TRUE, "executable": Program.TRUE}
    executable = Executable.from_task(task, Program.TRUE)
    sent = pickle.loads(wire.dump_message(wire.RUN, [], [(Program.TRUE, executable)]))
    uid, received = sent[2][0]
    assert type(uid) is type(received.uid) is type(received.command[0]) is str
    assert (uid, received.command) == ("/bin/true", ["/bin/true"])


def test_what_cannot_be_pickled_is_named() -> None:
    frame = sys._getframe()
    with pytest.raises(TaskExecutionError, match="its function cannot be pickled"):
        wire.dump_function("task", lambda: frame)


@given(st.lists(st.binary(max_size=100), max_size=20), st.integers(1, 200))
def test_notes_are_whole_however_they_come(payloads: list[bytes], piece: int) -> None:
    notes = [(n, wire.VALUE, n / 2, payload) for n, payload in enumerate(payloads)]
    stream = b"".join(wire.note(*note) for note in notes)
    frames, seen = wire.Frames(), []
    for start in range(0, len(stream), piece):
        seen += frames.feed(stream[start : start + piece])
    assert seen == notes
