"""A call as it is sent to a worker: its pickles, in which futures stand for earlier results."""

from __future__ import annotations

import functools
import io
import pickle
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from distributed import get_worker

from rhapsody.backends.dask.snapshot import Snapshot
from rhapsody.backends.data.packing import DataPickler, MakePickler, Packed
from rhapsody.backends.executables.executable import Executable
from rhapsody.errors import TaskExecutionError

__all__ = ["DataOutOfReachError", "RemoteCall", "dump", "pickler_for"]


class DataOutOfReachError(Exception):
    """A worker cannot use the shared memory in which the arguments of its call are.

    Args:
        worker: Address of the worker.
    """

    def __init__(self, worker: str) -> None:
        super().__init__(worker)
        self.worker = worker


@dataclass(frozen=True)
class RemoteCall:
    """A function or an executable, as it is sent to a worker.

    Attributes:
        uid: The task's uid.
        key: The task's key in Dask.
        token: Identifies this call; a key can be used again.
        plugin: Name of the backend's plugin on the workers.
        executable: The executable, or None for a function.
        function: The pickled function, or empty for an executable.
        arguments: The pickled `(args, kwargs)` of the function, with large data in segments.
        keep: Whether the result stays on the worker.
        share: Whether a large result goes into a segment.
        may_keep: Whether a large result stays on the worker, as a `Snapshot`.
    """

    uid: str
    key: str
    token: str
    plugin: str
    executable: Executable | None = None
    function: bytes = b""
    arguments: bytes | Packed = b""
    keep: bool = False
    share: bool = False
    may_keep: bool = False

    def load(
        self, data: Sequence[Any], load_packed: Callable[[Packed], Any] | None = None
    ) -> tuple[Any, Any, Any]:
        """Return function, args and kwargs, with every future replaced by its data.

        Args:
            data: The data of the futures.
            load_packed: Loads arguments with data in segments. None: this worker sees no segments.

        Raises:
            TaskExecutionError: Something in them cannot be imported or rebuilt here.
            DataOutOfReachError: They have data in segments, which this worker does not see.
        """
        if load_packed is None and isinstance(self.arguments, Packed):
            raise DataOutOfReachError(get_worker().address)
        _loading.data = [one.copy() if isinstance(one, Snapshot) else one for one in data]
        try:
            if isinstance(self.arguments, Packed):
                assert load_packed is not None
                args, kwargs = load_packed(self.arguments)
            else:
                args, kwargs = pickle.loads(self.arguments)
            return pickle.loads(self.function), args, kwargs
        except Exception as error:
            raise TaskExecutionError(
                self.uid,
                f"a worker could not load its function or arguments: {type(error).__name__}: "
                f"{error}; what the main script does not define must be importable on workers",
            ) from error
        finally:
            del _loading.data


_loading = threading.local()


def _data_at(position: int) -> Any:
    return _loading.data[position]


class _FuturePickler(DataPickler):
    """Replaces futures at any depth by their position in a list."""

    def __init__(self, future_type: type, futures: list[Any], file: Any, **options: Any) -> None:
        super().__init__(file, **options)
        self._future_type = future_type
        self._futures = futures

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, self._future_type):
            self._futures.append(obj)
            return _data_at, (len(self._futures) - 1,)
        return super().reducer_override(obj)


def pickler_for(future_type: type, futures: list[Any]) -> MakePickler:
    """Return what creates a pickler that replaces futures.

    Args:
        future_type: The class of futures.
        futures: Futures found in the object are appended; `RemoteCall.load` inserts their data.
    """
    return functools.partial(_FuturePickler, future_type, futures)


def dump(obj: Any, make_pickler: MakePickler) -> bytes:
    """Pickle an object, closures and lambdas included."""
    with io.BytesIO() as file:
        make_pickler(file, protocol=5).dump(obj)
        return file.getvalue()
