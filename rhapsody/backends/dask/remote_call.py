"""A call as it is sent to a worker: its pickles, in which futures stand for earlier results."""

from __future__ import annotations

import io
import pickle
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rhapsody.backends.data.pickler import FunctionPickler
from rhapsody.backends.executables.executable import Executable
from rhapsody.errors import TaskExecutionError

__all__ = ["RemoteCall", "dump"]


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
        arguments: The pickled `(args, kwargs)` of the function.
        keep: Whether the result stays on the worker.
    """

    uid: str
    key: str
    token: str
    plugin: str
    executable: Executable | None = None
    function: bytes = b""
    arguments: bytes = b""
    keep: bool = False

    def load(self, data: Sequence[Any]) -> tuple[Any, Any, Any]:
        """Return function, args and kwargs, with every future replaced by its data.

        Raises:
            TaskExecutionError: Something in them cannot be imported or rebuilt here.
        """
        _loading.data = data
        try:
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


class _FuturePickler(FunctionPickler):
    """Replaces futures at any depth by their position in a list."""

    def __init__(self, file: Any, future_type: type, futures: list[Any]) -> None:
        super().__init__(file)
        self._future_type = future_type
        self._futures = futures

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, self._future_type):
            self._futures.append(obj)
            return _data_at, (len(self._futures) - 1,)
        return super().reducer_override(obj)


def dump(obj: Any, future_type: type, futures: list[Any]) -> bytes:
    """Pickle an object, closures and lambdas included.

    Args:
        obj: Any object.
        future_type: The class of futures.
        futures: Futures found in the object are appended; `RemoteCall.load` inserts their data.
    """
    with io.BytesIO() as file:
        _FuturePickler(file, future_type, futures).dump(obj)
        return file.getvalue()
