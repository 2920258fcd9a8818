"""Energy by NVIDIA's own counter: that of the whole GPU, whoever used it meanwhile, and nothing else of the machine."""

from contextlib import suppress
from types import ModuleType

import torch


class EnergyMeter:
    """Energy between `start` and `stop`, or None where the machine does not tell, as on any device but CUDA.

    The total-energy counter of the driver is read (Volta and later, through ``nvidia-ml-py``, imported if not given).
    """

    def __init__(self, device: torch.device | str = "cpu", nvml: ModuleType | None = None) -> None:
        self._device, self._nvml = torch.device(device), nvml
        self._is_open, self._first = False, None

    def start(self) -> None:
        """Begin a measurement, or begin it anew."""
        self.stop()
        if self._device.type != "cuda":
            return
        if self._nvml is None:
            with suppress(ImportError):
                import pynvml

                self._nvml = pynvml
        if self._nvml is None:
            return
        with suppress(self._nvml.NVMLError):
            self._nvml.nvmlInit()
            self._is_open = True
            # By its id: torch's numbers leave out what CUDA_VISIBLE_DEVICES hides.
            name = f"GPU-{torch.cuda.get_device_properties(self._device).uuid}"
            self._handle = self._nvml.nvmlDeviceGetHandleByUUID(name)
            self._first = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)

    def read(self) -> float | None:
        """Joules since `start`; None before it, or if there is no counter or it may not be read."""
        if self._first is None:
            return None
        try:
            return (self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) - self._first) / 1e3
        except self._nvml.NVMLError:
            return None

    def stop(self) -> float | None:
        """End the measurement and let go of the driver's library; joules since `start`, or None as in `read`."""
        joules = self.read()
        if self._is_open:
            with suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()
        self._is_open, self._first = False, None
        return joules
