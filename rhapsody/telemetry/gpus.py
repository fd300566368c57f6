"""The utilization of this node's NVIDIA GPUs, read by `pynvml` if it is installed."""

from __future__ import annotations

import importlib
import logging
from typing import Any

__all__ = ["GpuSampler"]

logger = logging.getLogger(__name__)


class GpuSampler:
    """Reads the utilization of the GPUs; without `pynvml` or a driver there are none.

    vLLM installs `pynvml`; elsewhere it is the package `nvidia-ml-py`.
    """

    def __init__(self) -> None:
        self._handles: dict[int, Any] = {}
        self._nvml: Any = None
        try:
            self._nvml = importlib.import_module("pynvml")
            self._nvml.nvmlInit()
            for index in range(self._nvml.nvmlDeviceGetCount()):
                self._handles[index] = self._nvml.nvmlDeviceGetHandleByIndex(index)
        except Exception as error:  # not installed, or an NVMLError: this node has no driver
            logger.debug("no GPU utilization in telemetry: %s", error)

    def sample(self) -> dict[int, float]:
        """Return the utilization of each GPU in percent, by its index."""
        found: dict[int, float] = {}
        for index, handle in list(self._handles.items()):
            try:
                found[index] = float(self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
            except Exception as error:  # an NVMLError: it was removed, or is a MIG device
                logger.warning("no utilization of GPU %d in telemetry: %s", index, error)
                del self._handles[index]
        return found
