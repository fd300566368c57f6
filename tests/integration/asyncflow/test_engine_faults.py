"""The event-driven engine: a fault fails the tasks concerned, with the true reason."""

import asyncio
import threading

import pytest
from radical.asyncflow import InputFile, OutputFile
from radical.asyncflow.errors import DependencyFailureError

from asyncflow_ext import WorkflowEngine
from rhapsody.api.errors import BackendInUseError, ConfigurationError, TaskTimeoutError
from rhapsody.backends import ConcurrentExecutionBackend, NoopExecutionBackend
from tests.support.scripted import ScriptedBackend

pytestmark = pytest.mark.asyncflow


class TwoArguments(Exception):
    def __init__(self, code, reason):
        super().__init__(code, reason)
        self.code, self.reason = code, reason


@pytest.fixture
async def flow():
    async with WorkflowEngine.create(backend=ConcurrentExecutionBackend()) as engine:
        yield engine


def tasks_of(flow, **options):
    @flow.function_task(**options)
    async def task(*before):
        return "fine"

    return task


async def test_an_unknown_backend_name_fails_that_task_only(flow):
    with pytest.raises(ConfigurationError, match=r"no backend 'nowhere'.*'concurrent'"):
        await tasks_of(flow, backend="nowhere")()
    assert await tasks_of(flow)() == "fine"


async def test_a_backend_that_raises_from_submit_fails_its_batch_only():
    bad, good = ScriptedBackend("bad"), NoopExecutionBackend("good")
    bad.submit_error = OSError("the scheduler is down")
    async with WorkflowEngine.create(backend=[bad, good]) as flow:
        failing, fine = tasks_of(flow, backend="bad")(), tasks_of(flow, backend="good")()
        with pytest.raises(OSError, match="the scheduler is down"):
            await failing
        await fine
        bad.submit_error = None
        await tasks_of(flow, backend="bad")()


@pytest.mark.parametrize("answer", [None, {}, RuntimeError("no such file")])
async def test_a_link_hook_that_fails_fails_that_task_only(answer):
    class Linking(ScriptedBackend):
        supports_explicit_data_linking = True

        def link_explicit_data_deps(self, **kwargs):
            if isinstance(answer, Exception):
                raise answer
            return answer

    async with WorkflowEngine.create(backend=Linking()) as flow:
        task = tasks_of(flow)
        with pytest.raises((TypeError, RuntimeError), match=r"target|no such file"):
            await task(InputFile(__file__))
        await task()


async def test_a_task_called_after_the_shutdown_raises_at_once():
    flow = await WorkflowEngine.create(backend=NoopExecutionBackend())
    task = tasks_of(flow)
    await flow.shutdown()
    with pytest.raises(RuntimeError, match="was shut down"):
        task()


async def test_two_backends_of_one_name_are_refused():
    first, second = NoopExecutionBackend("same"), NoopExecutionBackend("same")
    with pytest.raises(ConfigurationError, match="two backends are named 'same'"):
        await WorkflowEngine.create(backend=[first, second])
    flow = await WorkflowEngine.create(backend=first)  # the failed engine has let it go
    await flow.shutdown()


async def test_a_backend_of_a_living_engine_is_refused():
    backend = NoopExecutionBackend()
    async with WorkflowEngine.create(backend=backend) as flow:
        with pytest.raises(BackendInUseError):
            await WorkflowEngine.create(backend=backend)
        await tasks_of(flow)()


async def test_done_without_a_result_fails_the_task():
    backend = ScriptedBackend(on_task=lambda task: backend._callback_func(task, "DONE"))
    async with WorkflowEngine.create(backend=backend) as flow:
        with pytest.raises(RuntimeError, match="without its 'return_value'"):
            await tasks_of(flow)()


@pytest.mark.parametrize("error", [StopIteration("end"), SystemExit(3), "just words", None])
async def test_whatever_a_backend_reports_becomes_an_exception(error):
    backend = ScriptedBackend(on_task=lambda task: backend.failed(task, error))
    async with WorkflowEngine.create(backend=backend) as flow:
        with pytest.raises(RuntimeError):
            await tasks_of(flow)()


async def test_an_exception_of_two_arguments_keeps_its_type_and_message(flow):
    @flow.function_task
    async def task():
        raise TwoArguments(7, "seven")

    with pytest.raises(TwoArguments) as caught:
        await task()
    assert (caught.value.code, caught.value.reason) == (7, "seven")


async def test_a_failed_dependency_shows_the_chain_to_the_root_cause(flow):
    @flow.function_task
    async def first():
        raise ValueError("boom")

    @flow.function_task
    async def second(before):
        return before

    @flow.function_task
    async def third(before):
        return before

    with pytest.raises(DependencyFailureError) as caught:
        await third(second(first()))
    message = str(caught.value)
    assert "'third'" in message
    assert "'second' failed" in message
    assert "'first' failed: ValueError: boom" in message
    assert caught.value.failed_dependencies == ["second"]
    assert isinstance(caught.value.root_cause.root_cause, ValueError)


async def test_a_body_that_fails_fails_its_dependents_with_that_error(flow):
    @flow.executable_task
    async def broken():
        raise LookupError("no input deck")

    with pytest.raises(DependencyFailureError, match="LookupError: no input deck"):
        await tasks_of(flow)(broken())


@pytest.mark.parametrize("text", ["", None, 7, "   "])
async def test_a_body_that_makes_no_command_is_told_so(flow, text):
    @flow.executable_task
    async def task():
        return text

    with pytest.raises(ValueError, match="non-empty command string"):
        await task()


async def test_a_failed_attempt_is_repeated():
    attempts = []

    def fail_twice(task):
        attempts.append(task["uid"])
        if len(attempts) < 3:
            backend.failed(task, OSError("flaky"))
        else:
            assert "exception" not in task
            backend.done(task, "at last")

    backend = ScriptedBackend(on_task=fail_twice)
    async with WorkflowEngine.create(backend=backend) as flow:
        assert await tasks_of(flow, retries=2, backoff=0.001)() == "at last"
    assert len(attempts) == 3


async def test_retries_used_up_give_the_last_error():
    backend = ScriptedBackend(on_task=lambda task: backend.failed(task, OSError("broken")))
    async with WorkflowEngine.create(backend=backend) as flow:
        with pytest.raises(OSError, match="broken"):
            await tasks_of(flow, retries=2, backoff=0.001)()
    assert len(backend.batches) == 3


async def test_a_block_is_repeated(flow):
    attempts = []

    @flow.block(retries=1, backoff=0.001)
    async def block():
        attempts.append(1)
        if len(attempts) == 1:
            raise OSError("flaky")
        return "fine"

    assert await block() == "fine"


async def test_a_body_runs_once_per_attempt():
    bodies = []
    outcomes = [OSError("flaky"), None]

    def answer(task):
        error = outcomes.pop(0)
        backend.failed(task, error) if error else backend.done(task, "out")

    backend = ScriptedBackend(on_task=answer)
    async with WorkflowEngine.create(backend=backend) as flow:

        @flow.executable_task(retries=1, backoff=0.001)
        async def task():
            bodies.append(1)
            return "/bin/true"

        assert await task() == "out"
    assert len(bodies) == 2


@pytest.mark.parametrize("kind", ["executable_task", "prompt_task"])
async def test_every_attempt_of_a_body_gets_the_same_arguments(kind):
    errors = [RuntimeError("once"), RuntimeError("twice"), None]
    seen = []

    def answer(task):
        error = errors.pop(0) if task["name"] == "body" else None
        backend.failed(task, error) if error else backend.done(task, "out")

    backend = ScriptedBackend(on_task=answer)
    async with WorkflowEngine.create(backend=backend) as flow:

        @getattr(flow, kind)(retries=2, backoff=0.001)
        async def body(before, values):
            seen.append((await before, await values[0]))
            return "/bin/true"

        assert await body(tasks_of(flow)(), [tasks_of(flow)()]) == "out"
    assert seen == [("out", "out")] * 3


async def test_every_attempt_links_its_files():
    class Linking(ScriptedBackend):
        supports_explicit_data_linking = True

        def link_explicit_data_deps(self, src_task=None, dst_task=None, file_name=None, **where):
            links.append((src_task["name"], file_name))
            return {"target": file_name}

    def answer(task):
        error = errors.pop(0) if task["name"] == "reader" else None
        backend.failed(task, error) if error else backend.done(task, None)

    errors, links = [RuntimeError("once"), None], []
    backend = Linking(on_task=answer)
    async with WorkflowEngine.create(backend=backend) as flow:

        @flow.function_task
        async def writer(file):
            return None

        @flow.function_task(retries=1, backoff=0.001)
        async def reader(file, before):
            return None

        await reader(InputFile("data"), writer(OutputFile("data")))
    assert links == [("writer", "data")] * 2


async def test_a_failed_dependency_is_not_repeated(flow):
    @flow.function_task
    async def broken():
        raise ValueError("boom")

    with pytest.raises(DependencyFailureError):
        await asyncio.wait_for(tasks_of(flow, retries=5, backoff=60)(broken()), 5)


async def test_a_task_that_takes_too_long_fails(flow):
    @flow.executable_task(timeout=0.1)
    async def endless():
        return "/bin/sleep 60"

    with pytest.raises(TaskTimeoutError, match=r"timeout of 0\.1 s"):
        await asyncio.wait_for(endless(), 10)


async def test_a_block_that_takes_too_long_fails_and_stops(flow):
    stopped = asyncio.Event()

    @flow.block(timeout=0.05)
    async def endless():
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    with pytest.raises(TaskTimeoutError):
        await endless()
    await asyncio.wait_for(stopped.wait(), 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"service": "yes"}, "'service' must be a boolean"),
        ({"retries": -1}, "'retries' must be a whole number"),
        ({"backoff": -1}, "'backoff' must be a number of seconds"),
        ({"timeout": 0}, "'timeout' must be a positive number of seconds"),
    ],
)
async def test_wrong_options_are_refused_at_decoration(flow, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        tasks_of(flow, **options)


async def test_an_ai_task_is_a_task_with_dependencies_and_retries():
    async with WorkflowEngine.create(backend=NoopExecutionBackend()) as flow:
        attempts = []

        @flow.function_task
        async def fact():
            return None

        @flow.ai_task(retries=1, backoff=0.001)
        async def ask(facts):
            attempts.append(facts)
            if len(attempts) == 1:
                raise OSError("flaky")
            return "a question"

        known = fact()
        answer = ask([known])
        assert await answer == ""
        assert attempts == [[None], [None]]
        assert answer.task["uid"].startswith("task.")
        assert answer.task["metadata"]["dependencies"] == (
            {"uid": known.task["uid"], "name": "fact"},
        )


class Speechless(Exception):
    def __str__(self):
        return self.missing


class Odd(BaseException):
    pass


async def test_an_exception_that_cannot_be_printed_is_still_one(flow):
    @flow.function_task
    async def broken():
        raise Speechless

    first = broken()
    with pytest.raises(Speechless):
        await asyncio.wait_for(asyncio.shield(first), 10)
    with pytest.raises(DependencyFailureError, match="Speechless"):
        await tasks_of(flow)(first)


@pytest.mark.parametrize("kind", ["block", "executable_task", "prompt_task"])
async def test_an_odd_exception_of_a_body_ends_its_task(flow, kind):
    @getattr(flow, kind)
    async def body():
        raise Odd("odd")

    with pytest.raises(RuntimeError, match="Odd: odd"):
        await asyncio.wait_for(body(), 5)


async def test_a_block_that_timed_out_is_repeated(flow):
    attempts = []

    @flow.block(timeout=0.05, retries=2, backoff=0.001)
    async def block():
        attempts.append(1)
        if len(attempts) < 3:
            await asyncio.Event().wait()
        return "fine"

    assert await asyncio.wait_for(block(), 10) == "fine"


@pytest.mark.parametrize("kind", ["function_task", "block"])
async def test_every_attempt_has_its_own_timeout(flow, kind):
    attempts = []

    @getattr(flow, kind)(timeout=0.2, retries=2, backoff=0.001)
    async def stuck():
        attempts.append(1)
        await asyncio.Event().wait()

    with pytest.raises(TaskTimeoutError):
        await asyncio.wait_for(stuck(), 20)
    assert len(attempts) == 3


async def test_a_late_value_of_a_block_that_timed_out_is_not_taken(flow):
    @flow.block(timeout=0.05)
    async def block():
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "too late"

    with pytest.raises(TaskTimeoutError):
        await asyncio.wait_for(block(), 10)


async def test_the_members_of_a_block_that_timed_out_are_cancelled(flow):
    members = []

    @flow.block(timeout=0.1)
    async def block():
        members.append(endless())
        await members[0]

    @flow.executable_task
    async def endless():
        return "/bin/sleep 60"

    with pytest.raises(TaskTimeoutError):
        await asyncio.wait_for(block(), 10)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(asyncio.shield(members[0]), 10)


async def test_a_cancelled_task_is_not_repeated():
    backend = ScriptedBackend(on_task=lambda task: None)
    async with WorkflowEngine.create(backend=backend) as flow:
        future = tasks_of(flow, retries=3, backoff=0.001)()
        await asyncio.sleep(0.05)
        assert backend.batches
        future.cancel("no more")
        backend.failed(backend.batches[0][0], OSError("died while it was stopped"))
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(asyncio.shield(future), 5)
    assert len(backend.batches) == 1


async def test_what_a_backend_goes_on_with_is_not_handed_to_it_again():
    backend = ScriptedBackend(on_task=lambda task: None)
    backend.cancel_answer = False
    async with WorkflowEngine.create(backend=backend) as flow:
        with pytest.raises(TaskTimeoutError):
            await asyncio.wait_for(tasks_of(flow, timeout=0.05, retries=2, backoff=0.001)(), 10)
    assert len(backend.batches) == 1


async def test_the_timeout_covers_the_body(flow):
    @flow.executable_task(timeout=0.05)
    async def slow():
        await asyncio.Event().wait()

    with pytest.raises(TaskTimeoutError):
        await asyncio.wait_for(slow(), 5)


async def test_what_an_earlier_attempt_raises_late_fails_no_later_one(flow):
    attempts = []

    @flow.executable_task(timeout=1.5, retries=1, backoff=0.001)
    async def task():
        attempts.append(1)
        if len(attempts) > 1:
            await asyncio.sleep(0.1)
            return "/bin/echo second"
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0.05)
            raise OSError("late clean-up") from None

    assert await asyncio.wait_for(task(), 10) == "second\n"


async def test_many_retries_do_not_overflow():
    backend = ScriptedBackend(on_task=lambda task: backend.failed(task, OSError("broken")))
    async with WorkflowEngine.create(backend=backend) as flow:
        with pytest.raises(OSError, match="broken"):
            await tasks_of(flow, retries=1100, backoff=0.0)()


async def test_a_long_chain_of_failures_keeps_its_messages_short(flow):
    @flow.function_task
    async def broken():
        raise ValueError("boom")

    last = broken()
    for _ in range(100):
        last = tasks_of(flow)(last)
    with pytest.raises(DependencyFailureError) as caught:
        await last
    assert len(str(caught.value)) < 1500
    assert "boom" in str(caught.value)


async def test_a_backend_that_reports_from_a_thread_is_heard():
    def from_a_thread(task):
        threading.Timer(0.05, backend.done, [task, "heard"]).start()

    backend = ScriptedBackend(on_task=from_a_thread)
    async with WorkflowEngine.create(backend=backend) as flow:
        assert await asyncio.wait_for(tasks_of(flow)(), 5) == "heard"


async def test_a_call_from_another_thread_is_refused(flow):
    with pytest.raises(RuntimeError, match="in another thread"):
        await asyncio.to_thread(tasks_of(flow))
    assert await tasks_of(flow)() == "fine"


async def test_a_future_of_another_loop_is_refused(flow):
    other = asyncio.new_event_loop()
    try:
        with pytest.raises(RuntimeError, match="another event loop"):
            tasks_of(flow)(other.create_future())
    finally:
        other.close()
    assert await tasks_of(flow)() == "fine"
