import multiprocessing
import re

import pytest

from rhapsody.errors import BackendError, ConfigurationError

pytestmark = pytest.mark.dask


async def test_worker_process_starts_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    from rhapsody.backends.dask.local_cluster import start_local_cluster

    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(RuntimeError, match="cannot start another one"):
        await start_local_cluster({})


async def test_replaced_multiprocessing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from rhapsody.backends import DaskExecutionBackend

    def pipe(duplex: bool = True) -> None:
        raise TypeError("'NoneType' object is not callable")

    monkeypatch.setattr("multiprocessing.connection.Pipe", pipe)
    with pytest.raises(BackendError, match="the Dragon runtime has replaced it") as raised:
        await DaskExecutionBackend({"n_workers": 1})
    assert "__main__" not in str(raised.value)


async def test_misspelled_option_is_named_with_the_nearest() -> None:
    from rhapsody.backends import DaskExecutionBackend

    message = "resources has the unknown option 'n_worker'; did you mean 'n_workers'?"
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        await DaskExecutionBackend({"n_worker": 1})
