"""The event-driven engine: what a task depends on, and what its function gets."""

import asyncio
import functools
from contextvars import ContextVar

import pytest
from radical.asyncflow.errors import DependencyFailureError

from asyncflow_ext import WorkflowEngine
from rhapsody.backends import ConcurrentExecutionBackend, NoopExecutionBackend

pytestmark = pytest.mark.asyncflow

SCOPE = ContextVar("scope", default="outside")


@pytest.fixture
async def flow():
    async with WorkflowEngine.create(backend=ConcurrentExecutionBackend()) as engine:
        yield engine


@pytest.fixture
def number(flow):
    @flow.function_task
    async def number(value):
        return value

    return number


async def test_the_body_of_an_executable_gets_values(flow, number):
    @flow.executable_task
    async def echo(values, *, more):
        assert values == [1, 2]
        return f"/bin/echo {values[0]} {more['x']}"

    assert await echo([number(1), number(2)], more={"x": number(3)}) == "1 3\n"


async def test_a_body_that_awaits_its_argument_keeps_working(flow, number):
    @flow.executable_task
    async def echo(value):
        return f"/bin/echo {await value}"

    assert await echo(number(5)) == "5\n"


async def test_a_body_that_gathers_its_arguments_keeps_working(flow, number):
    @flow.executable_task
    async def echo(*values):
        first, second = await asyncio.gather(*values)
        return f"/bin/echo {first + second}"

    assert await echo(number(1), number(2)) == "3\n"


async def test_a_type_error_of_the_body_itself_is_not_hidden(flow, number):
    @flow.executable_task
    async def echo(value):
        return "/bin/echo " + value

    with pytest.raises(TypeError, match="concatenate"):
        await echo(number(1))


async def test_futures_inside_containers_are_found(flow, number):
    @flow.function_task
    async def collect(values, table, pair):
        return values, table, pair

    result = await collect([number(1), [number(2)]], {"k": number(3)}, (number(4), 5))
    assert result == ([1, [2]], {"k": 3}, (4, 5))


async def test_a_plain_future_is_awaited(flow):
    @flow.function_task
    async def take(value, other):
        return value + other

    plain = asyncio.get_running_loop().create_future()
    task = asyncio.get_running_loop().create_task(asyncio.sleep(0.01, 2))
    result = take(plain, task)
    plain.set_result(1)
    assert await result == 3


async def test_a_plain_future_that_fails_fails_the_task(flow, number):
    plain = asyncio.get_running_loop().create_future()
    result = number(plain)
    plain.set_exception(OSError("no file"))
    with pytest.raises(DependencyFailureError, match="OSError: no file"):
        await result


async def test_a_future_of_another_engine_works(flow, number):
    async with WorkflowEngine.create(backend=NoopExecutionBackend()) as other:

        @other.executable_task
        async def foreign():
            return "/bin/true"

        assert await number(foreign()) == ""


async def test_a_future_given_twice_is_one_dependency(flow, number):
    @flow.function_task
    async def add(a, b):
        return a + b

    one = number(1)
    result = add(one, one)
    assert await result == 2
    assert len(result.task["metadata"]["dependencies"]) == 1


async def test_blocks_get_values_and_give_them(flow, number):
    @flow.block
    async def block(value):
        return await number(value + 1)

    assert await number(block(number(1))) == 2


async def test_a_finished_future_as_an_argument(flow, number):
    one = number(1)
    await one
    assert await number(one) == 1


async def test_a_dependency_whose_body_is_still_at_work(flow, number):
    @flow.executable_task
    async def slow():
        await asyncio.sleep(0.02)
        return "/bin/echo late"

    assert await number(slow()) == "late\n"


class Simulation:
    def __init__(self, factor):
        self.factor = factor

    async def run(self, value):
        return value * self.factor

    async def __call__(self, value):
        return value + self.factor


async def scaled(value, factor):
    return value * factor


@pytest.mark.parametrize(
    ("function", "name", "expected"),
    [
        (Simulation(3).run, "run", 6),
        (Simulation(3), "Simulation", 5),
        (functools.partial(scaled, factor=4), "scaled", 8),
    ],
)
async def test_methods_partials_and_callable_objects_can_be_tasks(flow, function, name, expected):
    future = flow.function_task(function)(2)
    assert future.task["name"] == name
    assert await future == expected


async def test_a_sync_function_is_refused(flow):
    @flow.function_task
    def task():
        return None

    with pytest.raises(TypeError, match="must be async"):
        task()


async def test_parameters_named_like_options_get_their_values(flow):
    @flow.function_task
    async def task(workflow_id, task_description):
        return workflow_id, task_description

    future = task(workflow_id="w1", task_description={"cwd": "/"})
    assert await future == ("w1", {"cwd": "/"})
    assert future.task["workflow_id"] == "w1"
    assert future.task["task_backend_specific_kwargs"] == {"cwd": "/"}


async def test_options_that_the_function_does_not_name_are_not_passed_on(flow):
    @flow.function_task
    async def task(**rest):
        return rest

    future = task(workflow_id="w1", task_description={"timeout": 30}, x=1)
    assert await future == {"x": 1}
    assert future.task["workflow_id"] == "w1"


async def test_a_task_description_that_is_no_dict_is_refused(flow, number):
    with pytest.raises(TypeError, match="to be a dict"):
        number(1, task_description="fast")


async def test_the_workflow_scope_marks_tasks(flow, number):
    async with flow.workflow_scope("mine"):
        future = number(1)
    await future
    assert future.task["workflow_id"] == "mine"


async def test_a_body_runs_in_the_context_of_its_call(flow, number):
    seen = []

    @flow.block
    async def block(value):
        seen.append(SCOPE.get())

    waiting = number(1)
    SCOPE.set("inside")
    future = block(waiting)
    SCOPE.set("later")
    await future
    assert seen == ["inside"]


async def test_arguments_keep_their_identity(flow, number):
    seen = []

    @flow.block
    async def block(value, out):
        out.append(value)

    await block(number(1), seen)
    assert seen == [1]


async def test_what_is_put_into_a_list_after_a_call_is_no_part_of_it(flow, number):
    @flow.block
    async def take(values):
        return list(values)

    numbers = [number(1)]
    numbers.append(take(numbers))
    assert await asyncio.wait_for(numbers[1], 10) == [1]


async def test_a_container_may_contain_itself(flow, number):
    loop = [1]
    loop.append(loop)

    @flow.block
    async def block(value, ring):
        return ring is loop

    assert await block(number(1), loop)
