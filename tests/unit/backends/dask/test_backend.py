import importlib.util
import subprocess
import sys
from typing import Any

import pytest

from rhapsody.backends import BackendRegistry, DaskExecutionBackend, get_backend
from rhapsody.backends.core.attachment import Attachment, ignore
from rhapsody.backends.core.work import Work
from rhapsody.errors import ConfigurationError, MissingExtraError, UnsupportedTaskError


def work(options: dict[str, Any], **fields: Any) -> Work:
    task = {"uid": "task.1", "function": len, "task_backend_specific_kwargs": options, **fields}
    return Work(task, Attachment(ignore), "")


def test_missing_package_fails_construction_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert BackendRegistry.get_backend_class("dask") is DaskExecutionBackend
    with pytest.raises(MissingExtraError, match=r'pip install "\.\[dask\]"') as raised:
        DaskExecutionBackend()
    assert raised.value.package == "distributed"


def test_import_of_class_does_not_import_dask() -> None:
    code = (
        "import sys\n"
        "from rhapsody.backends import DaskExecutionBackend\n"
        "from rhapsody.backends.execution.dask_parallel import DaskExecutionBackend as same\n"
        "assert DaskExecutionBackend is same\n"
        "assert not {'dask', 'distributed'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.dask
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"resources": {"n_workers": 1}, "cluster": "tcp://x:1"}, "only one of the three"),
        ({"cluster": "tcp://x:1", "client": object()}, "only one of the three"),
        ({"resources": 4}, "resources must be a dict, got 4; cluster= takes an existing cluster"),
        ({"resources": {"asynchronous": False}}, "resources cannot set asynchronous"),
        ({"resources": {"loop": None}}, "resources cannot set loop"),
        ({"resource_timeout": "soon"}, "'resource_timeout' must be a number of seconds"),
        ({"resource_timeout": -1}, "'resource_timeout' must be a number of seconds of at least 0"),
    ],
)
def test_invalid_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        DaskExecutionBackend(**arguments)


@pytest.mark.dask
@pytest.mark.parametrize("given", [{"cluster": 5}, {"client": object()}])
async def test_start_refuses_other_objects(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="address of a scheduler"):
        await DaskExecutionBackend(**given)


@pytest.mark.dask
def test_statistics_are_empty_before_start() -> None:
    backend = get_backend("dask", {"n_workers": 1}, name="mine")
    assert backend.name == "mine"
    assert backend.dashboard_link is None
    assert backend.get_statistics() == {}


@pytest.mark.dask
@pytest.mark.parametrize(
    "options",
    [
        {"retries": 2, "key": "mine", "pure": True, "keep_on_cluster": True},
        {"resources": {"GPU": 1}, "workers": ["one"], "allow_other_workers": True, "priority": 2},
        {"cwd": "/", "env": {"A": "b"}, "shell": True, "timeout": 3},
    ],
)
def test_check_accepts_every_documented_option(options: dict[str, Any]) -> None:
    DaskExecutionBackend().check(work(options))


@pytest.mark.dask
@pytest.mark.parametrize(
    ("options", "fields", "message"),
    [
        ({"nodes": 2}, {}, "has no option 'nodes'"),
        ({"retries": -1}, {}, "'retries' must be a whole number of at least 0, got -1"),
        ({"key": "caf\udce9"}, {}, "'key' must be text that UTF-8 can encode"),
        ({"workers": 5}, {}, "'workers' must be"),
        ({"timeout": 0}, {}, "'timeout' must be a positive number"),
        ({"keep_on_cluster": True}, {"function": None, "executable": "ls"}, "of functions only"),
    ],
)
def test_check_refuses_invalid_options(
    options: dict[str, Any], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnsupportedTaskError, match=message):
        DaskExecutionBackend().check(work(options, **fields))
