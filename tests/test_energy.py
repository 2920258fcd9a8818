"""Energy: a counter that is set by hand, read back as joules."""

import sys
from types import SimpleNamespace

import pytest
import torch

from chexstudy.pretraining.engine.energy import EnergyMeter


class _Library:
    """What `pynvml` gives, with a counter that is set by hand."""

    class NVMLError(Exception):
        pass

    def __init__(self, known="GPU-abc"):
        self.millijoules, self.open, self.known = 5_000_000, 0, known

    def nvmlInit(self):
        self.open += 1

    def nvmlShutdown(self):
        self.open -= 1

    def nvmlDeviceGetHandleByUUID(self, name):
        if name != self.known:
            raise self.NVMLError("Not Found")
        return name

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        if self.millijoules is None:
            raise self.NVMLError("Not Supported")
        return self.millijoules


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="abc"))


@pytest.mark.usefixtures("gpu")
def test_gpu_counter_is_read_by_the_id_of_the_device():
    library = _Library()
    meter = EnergyMeter("cuda:0", library)
    meter.start()
    library.millijoules += 1500
    assert meter.read() == meter.stop() == pytest.approx(1.5)
    assert meter.stop() is None
    assert library.open == 0


@pytest.mark.usefixtures("gpu")
def test_gpu_that_does_not_tell():
    library = _Library()
    meter = EnergyMeter("cuda", library)
    meter.start()
    library.millijoules = None
    assert meter.stop() is None
    for silent in (_Library("GPU-other"), library):
        meter = EnergyMeter("cuda", silent)
        meter.start()
        assert meter.stop() is None
        assert silent.open == 0


@pytest.mark.usefixtures("gpu")
def test_gpu_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    meter = EnergyMeter("cuda")
    meter.start()
    assert meter.stop() is None


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_other_devices_tell_nothing(device):
    meter = EnergyMeter(device)
    meter.start()
    assert meter.stop() is None
