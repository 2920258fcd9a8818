"""Energy: counters that are written here by hand, read back as joules."""

import sys
import time
from types import SimpleNamespace

import pytest
import torch

from chexstudy.pretraining import energy
from chexstudy.pretraining.energy import EnergyMeter


def _write_domain(powercap, folder, name, microjoules, full=1_000_000):
    domain = powercap / folder
    domain.mkdir(parents=True, exist_ok=True)
    (domain / "name").write_text(f"{name}\n")
    (domain / "max_energy_range_uj").write_text(f"{full}\n")
    (domain / "energy_uj").write_text(f"{microjoules}\n")
    return domain / "energy_uj"


@pytest.fixture
def packages(tmp_path):
    """Two packages, and all that must not be counted beside them."""
    counters = [_write_domain(tmp_path, f"intel-rapl:{n}", f"package-{n}", 100_000 * n) for n in range(2)]
    others = [
        _write_domain(tmp_path, "intel-rapl:0:0", "core", 0),
        _write_domain(tmp_path, "intel-rapl:0:1", "dram", 0),
        _write_domain(tmp_path, "intel-rapl:2", "psys", 0),
        _write_domain(tmp_path, "intel-rapl-mmio:0", "package-0", 0),
    ]
    (tmp_path / "intel-rapl").mkdir()
    return SimpleNamespace(folder=tmp_path, counters=counters, others=others)


def test_packages_are_added_and_their_parts_are_not(packages):
    meter = EnergyMeter("cpu", packages.folder)
    meter.start()
    packages.counters[0].write_text("250000\n")
    packages.counters[1].write_text("400000\n")
    for counter in packages.others:
        counter.write_text("999999\n")
    assert meter.stop() == pytest.approx(0.25 + 0.3)


def test_full_counter_starts_again_at_zero(packages):
    meter = EnergyMeter("cpu", packages.folder)
    packages.counters[0].write_text("900000\n")
    meter.start()
    packages.counters[0].write_text("100000\n")
    assert meter.read() == pytest.approx(0.2)
    packages.counters[0].write_text("50000\n")
    assert meter.stop() == pytest.approx(0.2 + 0.95), "a second round counts, too, where it was read between"


def test_counter_is_read_meanwhile(packages, monkeypatch):
    monkeypatch.setattr(energy, "_SECONDS_BETWEEN_READINGS", 0.01)
    meter = EnergyMeter("cpu", packages.folder)
    meter.start()
    counter = packages.counters[0]
    for value in (600_000, 300_000):
        # In one move: the thread must not find the file empty.
        written = counter.with_name("written")
        written.write_text(f"{value}\n")
        written.replace(counter)
        deadline = time.monotonic() + 10
        while meter._counter._last[counter.parent] != value and time.monotonic() < deadline:
            time.sleep(0.01)
    assert meter.stop() == pytest.approx(1.3), "only the thread saw 0.6 J before the counter was full"


def test_each_start_measures_anew(packages):
    meter = EnergyMeter("cpu", packages.folder)
    for _ in range(2):
        meter.start()
        packages.counters[0].write_text(str(int(packages.counters[0].read_text()) + 1000))
        assert meter.stop() == pytest.approx(0.001)
    assert meter.stop() is None
    assert meter.read() is None


def test_machine_without_counters_tells_nothing(tmp_path):
    for powercap in (tmp_path, tmp_path / "absent"):
        meter = EnergyMeter("cpu", powercap)
        meter.start()
        assert meter.stop() is None


def test_forbidden_counter_tells_nothing(packages, monkeypatch):
    # Root may read whatever its mode says, so the refusal is played.
    allowed = type(packages.folder).read_text

    def read_text(path, *arguments, **options):
        if path.name == "energy_uj" and "intel-rapl:1" in path.parts:
            raise PermissionError(13, "Permission denied", str(path))
        return allowed(path, *arguments, **options)

    late = EnergyMeter("cpu", packages.folder)
    late.start()
    monkeypatch.setattr(type(packages.folder), "read_text", read_text)
    early = EnergyMeter("cpu", packages.folder)
    early.start()
    assert early.stop() is None, "one package of two would be a wrong number"
    assert late.stop() is None
    monkeypatch.undo()


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
def test_gpu_counter_is_read_by_the_id_of_the_device(packages):
    library = _Library()
    meter = EnergyMeter("cuda:0", packages.folder, library)
    meter.start()
    library.millijoules += 1500
    packages.counters[0].write_text("900000\n")
    assert meter.stop() == pytest.approx(1.5), "the processor's energy is not the GPU's"
    assert library.open == 0


@pytest.mark.usefixtures("gpu")
def test_gpu_that_does_not_tell(packages):
    library = _Library()
    meter = EnergyMeter("cuda", packages.folder, library)
    meter.start()
    library.millijoules = None
    assert meter.stop() is None
    for silent in (_Library("GPU-other"), library):
        meter = EnergyMeter("cuda", packages.folder, silent)
        meter.start()
        assert meter.stop() is None
        assert silent.open == 0


@pytest.mark.usefixtures("gpu")
def test_gpu_without_the_library(packages, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    meter = EnergyMeter("cuda", packages.folder)
    meter.start()
    assert meter.stop() is None


def test_other_devices_tell_nothing(packages):
    meter = EnergyMeter("meta", packages.folder)
    meter.start()
    assert meter.stop() is None
