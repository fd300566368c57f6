"""Messages as bytes: to a worker as plain text, from a worker in any pieces."""

import enum
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhapsody.backends.executables.executable import Executable
from rhapsody.backends.workers.messages import (
    FIELDS,
    NOT_REBUILT,
    PLAIN_VALUE,
    RAISED,
    READY,
    RUN,
    RUNNING,
    VALUE,
    Call,
    RunMessage,
    WorkerMessage,
    WorkerMessageDecoder,
    encode_message,
    encode_value,
    encode_worker_message,
    load_payload,
    loads_quickly,
)
from rhapsody.backends.workers.pickling import dump_error
from rhapsody.errors import TaskExecutionError
from rhapsody.testing import samples


def test_instances_of_str_subclasses_are_sent_as_str() -> None:
    class Program(str, enum.Enum):  # no other process can load it
        TRUE = "/bin/true"

    task = {"uid": Program.TRUE, "executable": Program.TRUE}
    executable = Executable.from_task(task, Program.TRUE)
    sent = pickle.loads(encode_message(RUN, [], [(Program.TRUE, executable)]))
    uid, received = sent[2][0]
    assert type(uid) is type(received.uid) is type(received.command[0]) is str
    assert (uid, received.command) == ("/bin/true", ["/bin/true"])


def call(call_id: int, function: int) -> Call:
    return Call(call_id, "task", False, False, function, b"arguments", None, None)


def test_run_message_has_each_function_once() -> None:
    message = RunMessage()
    for call_id, function in enumerate((samples.add, len, samples.add)):
        message.add(call(call_id, message.add_function("task", function)))
    kind, dumped, calls = pickle.loads(message.encode())
    assert kind == RUN
    assert [pickle.loads(data) for data in dumped] == [samples.add, len]
    assert [Call(*fields) for fields in calls] == [call(0, 0), call(1, 1), call(2, 0)]
    assert message.size == sum(map(len, dumped)) + 3 * len(b"arguments")


@given(st.lists(st.binary(max_size=100), max_size=20), st.integers(1, 200))
def test_decoder_yields_whole_messages_from_any_pieces(payloads: list[bytes], piece: int) -> None:
    messages = [(n, VALUE, n / 2, payload) for n, payload in enumerate(payloads)]
    stream = b"".join(encode_worker_message(*message) for message in messages)
    decoder = WorkerMessageDecoder()
    decoded: list[WorkerMessage] = []
    for start in range(0, len(stream), piece):
        decoded += decoder.feed(stream[start : start + piece])
    assert decoded == messages


@pytest.mark.parametrize("value", [None, True, 3, 0.5, "text", b"bytes"])
def test_plain_value_is_loaded_quickly(value: Any) -> None:
    kind, payload = encode_value("task", value)
    assert kind == PLAIN_VALUE
    assert loads_quickly((1, kind, 0.0, payload))
    assert load_payload(1, kind, 0.5, payload) == (1, VALUE, 0.5, value)


def test_other_value_is_not_loaded_quickly() -> None:
    kind, payload = encode_value("task", [1])
    assert kind == VALUE
    assert not loads_quickly((1, kind, 0.0, payload))
    assert load_payload(1, kind, 0.5, payload) == (1, VALUE, 0.5, [1])


def test_large_plain_value_is_not_loaded_quickly() -> None:
    kind, payload = encode_value("task", b"x" * 100_000)
    assert kind == PLAIN_VALUE
    assert not loads_quickly((1, kind, 0.0, payload))


@pytest.mark.parametrize("kind", [FIELDS, READY])
def test_payload_of_fields_and_ready_is_unpickled(kind: int) -> None:
    assert load_payload(1, kind, 0.0, pickle.dumps({"stdout": ""})) == (
        1,
        kind,
        0.0,
        {"stdout": ""},
    )


def test_payload_of_running_stays_as_it_is() -> None:
    assert load_payload(1, RUNNING, 0.0, b"") == (1, RUNNING, 0.0, b"")


def test_raised_becomes_the_exception() -> None:
    payload = dump_error("task", LookupError("nowhere"))
    _, kind, _, error = load_payload(1, RAISED, 0.0, payload)
    assert kind == RAISED
    assert type(error) is LookupError


class ExitsWhenLoaded:
    def __reduce__(self) -> Any:
        return exit_now, ()


def exit_now() -> None:
    raise SystemExit(3)


def test_value_that_cannot_be_loaded_becomes_not_rebuilt() -> None:
    kind, payload = encode_value("task", ExitsWhenLoaded())
    _, loaded_kind, _, error = load_payload(1, kind, 0.0, payload)
    assert loaded_kind == NOT_REBUILT
    assert isinstance(error, SystemExit)
    assert error.__traceback__ is None


def test_unpicklable_result_names_its_type() -> None:
    with pytest.raises(TaskExecutionError, match="its result, a generator, cannot be pickled"):
        encode_value("task", (number for number in range(3)))
