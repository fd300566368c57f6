"""Which unpickled functions a worker keeps."""

import cloudpickle
import pytest

from rhapsody.backends.workers import function_cache
from rhapsody.backends.workers.function_cache import FunctionCache
from rhapsody.testing import samples


def test_stateless_function_is_unpickled_once() -> None:
    cache = FunctionCache()
    data = cloudpickle.dumps(lambda: 42)
    assert cache.load(data) is cache.load(data)
    assert cache.load(data)() == 42


def test_closure_is_unpickled_for_each_call() -> None:
    cache = FunctionCache()
    numbers: list[int] = []

    def append() -> int:
        numbers.append(1)
        return len(numbers)

    data = cloudpickle.dumps(append)
    assert [cache.load(data)() for _ in range(3)] == [1, 1, 1]


def test_bound_method_is_unpickled_for_each_call() -> None:
    cache = FunctionCache()
    data = cloudpickle.dumps([].append)
    assert cache.load(data) is not cache.load(data)


def test_oldest_function_is_dropped_beyond_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(function_cache, "FUNCTIONS", 2)
    cache = FunctionCache()
    data = [cloudpickle.dumps(eval(f"lambda: {n}")) for n in range(3)]
    first, second, third = (cache.load(each) for each in data)
    assert cache.load(data[1]) is second
    assert cache.load(data[2]) is third
    assert cache.load(data[0]) is not first


def test_large_function_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(function_cache, "LARGE_BYTES", 10)
    cache = FunctionCache()
    data = cloudpickle.dumps(lambda: 42)
    assert cache.load(data) is not cache.load(data)


def test_importable_function_is_itself() -> None:
    assert FunctionCache().load(cloudpickle.dumps(samples.add)) is samples.add
