"""Energy by the counters of the hardware: NVIDIA's for a GPU, RAPL's for the processor packages of Intel and AMD.

These counters do not know processes: what is measured is the energy of the whole GPU, or of all processor packages,
whoever used them meanwhile. Memory, disks, fans and losses of the power supply are not in it.
"""

import threading
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import torch

POWERCAP = Path("/sys/class/powercap")
# The smallest counters hold 65 kJ: a package would need more than 2 kW to run through one between two readings.
_SECONDS_BETWEEN_READINGS = 30.0


class EnergyMeter:
    """Energy between `start` and `stop`, or None where the machine does not tell.

    On a GPU the total-energy counter of its driver is read (Volta and later, through ``nvidia-ml-py``), on a CPU the
    ``energy_uj`` of every RAPL package, which on many systems only root may read. A thread reads the latter now and
    then because those counters start again at zero when they are full.

    Args:
        device: where the work is done; another device than CPU or CUDA tells nothing.
        powercap: the folder of the kernel's RAPL counters.
        nvml: the module ``pynvml``; imported if not given.
    """

    def __init__(
        self, device: torch.device | str = "cpu", powercap: Path = POWERCAP, nvml: ModuleType | None = None
    ) -> None:
        self._device = torch.device(device)
        self._powercap, self._nvml = powercap, nvml
        self._counter: _GpuCounter | _PackageCounter | None = None
        self._ended, self._thread = threading.Event(), None

    def start(self) -> None:
        """Begin a measurement, or begin it anew."""
        self.stop()
        if self._device.type == "cuda":
            self._counter = _GpuCounter(self._device, self._nvml)
        elif self._device.type == "cpu":
            self._counter = _PackageCounter(self._powercap)
            self._ended = threading.Event()
            self._thread = threading.Thread(target=_keep_reading, args=(self._counter, self._ended), daemon=True)
            self._thread.start()

    def read(self) -> float | None:
        """Joules since `start`; None before it, or if a counter is missing or may not be read."""
        return None if self._counter is None else self._counter.read()

    def stop(self) -> float | None:
        """End the measurement; joules since `start`, or None as in `read`."""
        if self._thread is not None:
            self._ended.set()
            self._thread.join()
            self._thread = None
        joules = self.read()
        if self._counter is not None:
            self._counter.close()
            self._counter = None
        return joules


def _keep_reading(counter: "_PackageCounter", ended: threading.Event) -> None:
    while not ended.wait(_SECONDS_BETWEEN_READINGS):
        counter.read()


class _PackageCounter:
    """The RAPL packages in a powercap folder: microjoules, from zero again after ``max_energy_range_uj``."""

    def __init__(self, powercap: Path):
        self._lock = threading.Lock()
        self._microjoules = 0
        self._last: dict[Path, int] | None = None
        self._ranges: dict[Path, int] = {}
        # Only top-level domains named package: cores and memory are parts of them, psys is the whole board, and
        # intel-rapl-mmio shows the same packages again.
        with suppress(OSError, ValueError):
            domains = [
                domain
                for domain in sorted(powercap.glob("intel-rapl:*"))
                if (domain / "name").read_text().startswith("package")
            ]
            self._ranges = {domain: int((domain / "max_energy_range_uj").read_text()) for domain in domains}
            self._last = _read_microjoules(self._ranges)

    def read(self) -> float | None:
        """Joules so far; None from the first reading on that failed."""
        with self._lock:
            if not self._last:
                return None
            try:
                now = _read_microjoules(self._ranges)
            except (OSError, ValueError):
                self._last = None
                return None
            for domain, value in now.items():
                passed = value - self._last[domain]
                self._microjoules += passed if passed >= 0 else passed + self._ranges[domain]
            self._last = now
            return self._microjoules / 1e6

    def close(self) -> None:
        """Nothing is held open."""


def _read_microjoules(domains: dict[Path, int]) -> dict[Path, int]:
    return {domain: int((domain / "energy_uj").read_text()) for domain in domains}


class _GpuCounter:
    """The total energy of one GPU in millijoules since its driver was loaded."""

    def __init__(self, device: torch.device, nvml: ModuleType | None):
        self._nvml, self._is_open, self._first = nvml, False, None
        if nvml is None:
            with suppress(ImportError):
                import pynvml

                self._nvml = pynvml
        if self._nvml is None:
            return
        with suppress(self._nvml.NVMLError):
            self._nvml.nvmlInit()
            self._is_open = True
            # By its id: torch's numbers leave out what CUDA_VISIBLE_DEVICES hides.
            name = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
            self._handle = self._nvml.nvmlDeviceGetHandleByUUID(name)
            self._first = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)

    def read(self) -> float | None:
        """Joules since the first reading."""
        if self._first is None:
            return None
        try:
            return (self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) - self._first) / 1e3
        except self._nvml.NVMLError:
            return None

    def close(self) -> None:
        """Let go of the driver's library."""
        if self._is_open:
            with suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()
            self._is_open, self._first = False, None
