"""The utilization of GPUs; the library is replaced, since machines that run the tests have none."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from rhapsody.telemetry.gpus import GpuSampler


def nvml(readings: dict[int, Any]) -> Any:
    def rates(index: int) -> Any:
        if isinstance(readings[index], Exception):
            raise readings[index]
        return SimpleNamespace(gpu=readings[index])

    return SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: len(readings),
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetUtilizationRates=rates,
    )


def test_each_gpu_has_its_utilization(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml({0: 3, 1: 80}))
    assert GpuSampler().sample() == {0: 3.0, 1: 80.0}


def test_gpu_that_cannot_be_read_is_left_out_and_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml({0: 3, 1: RuntimeError("GPU is lost")}))
    sampler = GpuSampler()
    assert [sampler.sample(), sampler.sample()] == [{0: 3.0}, {0: 3.0}]
    assert [r.message for r in caplog.records] == [
        "no utilization of GPU 1 in telemetry: GPU is lost"
    ]


def test_without_the_library_there_are_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert GpuSampler().sample() == {}
