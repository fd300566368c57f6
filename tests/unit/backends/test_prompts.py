"""The checks of prompts and their parameters, before a backend starts."""

from typing import Any

import pytest

from rhapsody.errors import UnsupportedTaskError
from tests.support.inference import embedded


@pytest.mark.parametrize("prompts", ["", [], [7], [{"role": "user"}, "text"], None])
async def test_invalid_prompt_is_refused(prompts: Any) -> None:
    with pytest.raises(UnsupportedTaskError, match="'prompt' must be a non-empty string"):
        await embedded().generate(prompts)


async def test_unknown_sampling_parameter_is_refused() -> None:
    with pytest.raises(TypeError, match="unknown sampling parameter 'temprature'"):
        await embedded().generate("hi", temprature=1)
    with pytest.raises(TypeError, match="unknown sampling parameter 'temprature'"):
        await anext(embedded().stream("hi", temprature=1))


async def test_unknown_option_of_a_prompt_is_refused_with_the_nearest_one() -> None:
    task = {"prompt": "hi", "task_backend_specific_kwargs": {"time_out": 3}}
    with pytest.raises(UnsupportedTaskError, match="has no option 'time_out'; did you mean 'tim"):
        await embedded().run_one(task)


async def test_functions_as_tools_are_left_to_sessions_and_workflows() -> None:
    with pytest.raises(UnsupportedTaskError, match="'tools' need a session or a workflow"):
        await embedded().run_one({"prompt": "hi", "tools": [print]})
