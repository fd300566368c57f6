"""Functions by name or by value, errors that can be rebuilt or not, and quickly pickled tasks."""

import functools
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import cloudpickle
import pytest

from rhapsody.backends.workers.pickling import (
    RemoteTraceback,
    dump_arguments,
    dump_error,
    dump_function,
    dump_outcome,
    dump_value,
    load_outcome,
    pickles_quickly,
)
from rhapsody.errors import TaskExecutionError
from rhapsody.testing import samples
from tests.support import functions


def test_function_of_a_module_is_pickled_by_name() -> None:
    first, second = (dump_function("task", samples.add) for _ in range(2))
    assert first == second == cloudpickle.dumps(samples.add, protocol=5)
    assert pickle.loads(first) is samples.add


def test_traceback_of_an_error_begins_at_the_called_function() -> None:
    code = compile("def call(function):\n    return function()\n", "worker.py", "exec")
    worker = {"__package__": "rhapsody.backends.workers"}
    exec(code, worker)

    def fails() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no") as caught:
        worker["call"](fails)  # type: ignore[operator]
    frames = caught.value.__traceback__
    assert frames is not None
    caught.value.__traceback__ = frames.tb_next
    with pytest.raises(ValueError, match="no") as again:
        load_outcome("task.1", dump_error("task", caught.value))
    text = str(again.value.__cause__)
    assert "in fails" in text
    assert "worker.py" not in text


def test_closure_is_pickled_with_its_current_values() -> None:
    values = [1]

    def total() -> int:
        return sum(values)

    before = dump_function("task", total)
    values.append(2)
    after = dump_function("task", total)
    assert [pickle.loads(data)() for data in (before, after)] == [1, 3]


def test_function_of_the_main_script_is_pickled_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    def square(number: int) -> int:
        return number * number

    square.__module__, square.__qualname__ = "__main__", "square"
    monkeypatch.setattr(sys.modules["__main__"], "square", square, raising=False)
    data = dump_function("task", square)
    monkeypatch.delattr(sys.modules["__main__"], "square")
    rebuilt: Callable[[int], int] = pickle.loads(data)
    assert rebuilt(3) == 9


class Slow:
    def __reduce__(self) -> Any:
        time.sleep(0.01)
        return int, ()


light, slow, large = 1, Slow(), b"x" * 10_000


@pytest.mark.parametrize(
    ("function", "quick"),
    [
        (lambda number, light=light: light, True),
        (lambda number, slow=slow: slow, False),
        (lambda number, large=large: large, False),
        (os.getcwd, False),
        (functools.partial(print, slow), False),
    ],
    ids=["light", "slow", "large", "built-in", "partial"],
)
def test_task_pickles_quickly_once_its_function_was_pickled_quickly(
    function: Callable[..., Any], quick: bool
) -> None:
    task = {"function": function, "args": (1,)}
    assert not pickles_quickly(task)
    for _ in range(5):  # on a busy machine a light function may take long
        dump_function("task", function)
        if pickles_quickly(task) == quick:
            break
    assert pickles_quickly(task) == quick
    assert not pickles_quickly({**task, "args": ([],)})


def test_executable_pickles_quickly() -> None:
    assert pickles_quickly({"executable": "true"})


def test_non_sequence_arguments_do_not_pickle_quickly() -> None:
    assert not pickles_quickly({"executable": "true", "args": 5})


def test_no_arguments_are_none() -> None:
    assert dump_arguments("task", (), {}) is None
    data = dump_arguments("task", (1,), {"a": []})
    assert isinstance(data, bytes)
    assert pickle.loads(data) == ((1,), {"a": []})


def test_errors_name_the_unpicklable_object() -> None:
    frame = sys._getframe()
    with pytest.raises(TaskExecutionError, match="its function cannot be pickled"):
        dump_function("task", lambda: frame)
    with pytest.raises(TaskExecutionError, match="its arguments cannot be pickled"):
        dump_arguments("task", (frame,), {})
    for dump in (dump_value, dump_outcome):
        with pytest.raises(TaskExecutionError, match="its result, a frame, cannot be pickled"):
            dump("task", frame)


def outcome_of(function: Callable[..., Any], *args: Any) -> Any:
    try:
        return load_outcome("task.1", dump_outcome("task.1", function(*args)))
    except BaseException as error:
        return load_outcome("task.1", dump_error("task.1", error))


def test_result_is_returned() -> None:
    assert outcome_of(lambda value: value + 1, 1) == 2


def test_exception_is_raised_with_the_remote_traceback_as_cause() -> None:
    with pytest.raises(ValueError, match="no") as caught:
        outcome_of(functions.fail, ValueError, "no")
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    assert "in fail" in str(caught.value.__cause__)


@pytest.mark.parametrize("error", [StopIteration, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_exception_unfit_for_future_is_described(error: type[BaseException]) -> None:
    with pytest.raises(TaskExecutionError, match=rf"'task\.1'.*it raised {error.__name__}"):
        load_outcome("task.1", dump_error("task.1", error()))


class PairError(Exception):
    def __init__(self, left: int, right: int) -> None:
        super().__init__(f"{left} and {right}")
        self.right = right


def test_exception_whose_constructor_has_other_arguments_arrives() -> None:
    with pytest.raises(PairError, match="1 and 2") as caught:
        load_outcome("task.1", dump_error("task", PairError(1, 2)))
    assert caught.value.right == 2
    assert isinstance(caught.value.__cause__, RemoteTraceback)


def test_unpicklable_exception_is_described() -> None:
    error = ValueError("loss")
    error.lock = threading.Lock()  # type: ignore[attr-defined]
    with pytest.raises(TaskExecutionError, match="it raised ValueError: loss"):
        load_outcome("task.1", dump_error("task", error))


def fail_to_load() -> None:
    raise LookupError("it cannot be rebuilt")


class CannotBeRebuilt(Exception):
    def __reduce__(self) -> Any:
        return fail_to_load, ()


def test_unloadable_exception_is_described() -> None:
    with pytest.raises(TaskExecutionError, match="it raised CannotBeRebuilt: loss"):
        load_outcome("task.1", dump_error("task", CannotBeRebuilt("loss")))


class OwnAttributes(Exception):
    """Fails when it is asked for any attribute that it does not have, as for its notes."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)


class OwnArgs(Exception):
    @property
    def args(self) -> Any:  # type: ignore[override]
        raise RuntimeError("no args")


class ExitsWhenPickled(Exception):
    def __reduce__(self) -> Any:
        raise SystemExit(3)


@pytest.mark.parametrize("error", [OwnAttributes, OwnArgs, ExitsWhenPickled])
def test_exception_whose_own_code_raises_arrives_or_is_described(error: type[Exception]) -> None:
    with pytest.raises((error, TaskExecutionError)) as caught:
        load_outcome("task.1", dump_error("task.1", error("loss")))
    assert "loss" in str(caught.value)


def test_result_that_cannot_be_rebuilt_is_named() -> None:
    data = dump_outcome("task.1", CannotBeRebuilt("loss"))
    message = r"'task\.1'.*its result cannot be rebuilt .*: LookupError: it cannot be rebuilt"
    with pytest.raises(TaskExecutionError, match=message) as caught:
        load_outcome("task.1", data)
    assert isinstance(caught.value.__cause__, LookupError)
