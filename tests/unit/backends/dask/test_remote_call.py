"""A call as it is sent: what the worker loads."""

import pickle
from typing import Any

import pytest

from rhapsody.errors import TaskExecutionError

pytestmark = pytest.mark.dask


class StandIn:
    """Stands for a future."""


def test_load_replaces_futures_at_any_depth() -> None:
    from rhapsody.backends.dask.remote_call import RemoteCall, dump, pickler_for

    def function(values: Any) -> Any:
        return values, outside

    outside, inside = StandIn(), StandIn()
    futures: list[Any] = []
    arguments = dump((([{"a": inside}],), {}), pickler_for(StandIn, futures))
    code = dump(function, pickler_for(StandIn, futures))
    assert futures == [inside, outside]
    sent = RemoteCall("task.1", "key", "token", "plugin", function=code, arguments=arguments)
    loaded, args, kwargs = pickle.loads(pickle.dumps(sent)).load(["in", "out"])
    assert loaded(*args, **kwargs) == ([{"a": "in"}], "out")


def test_load_names_missing_module() -> None:
    from rhapsody.backends.dask.remote_call import RemoteCall

    broken = RemoteCall("task.1", "key", "token", "plugin", arguments=b"cno_such_module\nname\n.")
    with pytest.raises(TaskExecutionError, match=r"no_such_module.*importable on workers"):
        broken.load([])
