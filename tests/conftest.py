"""What the tests share: a home of their own, and the real radiographs where they are at hand."""

import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_configure(config):
    """Compiled code and the list of fonts are made once, and not anew in the home of every test."""
    if hasattr(config, "cache"):
        for name in ("NUMBA_CACHE_DIR", "MPLCONFIGDIR"):
            os.environ.setdefault(name, str(config.cache.mkdir(name.lower())))


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A fresh CHEXSTUDY_HOME: nothing a test writes lands in the checkout."""
    monkeypatch.setenv("CHEXSTUDY_HOME", str(tmp_path))
    monkeypatch.delenv("CHEXSTUDY_NOTEBOOK", raising=False)
    return tmp_path


@pytest.fixture
def opened_notebooks(home, monkeypatch):
    """What start_notebook sets and holds does not outlive the test."""
    from chexstudy.runs import MADE_BY_VARIABLE
    from chexstudy.workflow.locks import release_study
    from chexstudy.workflow.notebook import notebook_environment

    for name in (*notebook_environment(), "CHEXSTUDY_CWD", MADE_BY_VARIABLE):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    yield
    release_study()


@pytest.fixture
def one_thread():
    """Training on one thread, as arms are trained by default: the last bits of sums depend on it."""
    from chexstudy.devices import use_threads

    with use_threads(1):
        yield


@pytest.fixture
def torch_settings():
    """Whatever a test sets of torch's threads and precision of products is set back after it."""
    import torch

    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """Keys are those of a copy of the package; gives the function that adds a line to one of its modules."""
    from chexstudy import code_closure, paths

    def add_line(module: str, line: str) -> Path:
        with open(copy / module, "a") as file:
            file.write(f"{line}\n")
        forget()
        return copy.parent

    def forget():
        for cached in ("hash_closure", "list_closure", "_read_module"):
            getattr(code_closure, cached).cache_clear()

    copy = tmp_path / "checkout" / "chexstudy"
    shutil.copytree(paths.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy.parent / "notebooks").symlink_to(paths.NOTEBOOKS)
    monkeypatch.setattr(paths, "PACKAGE", copy)
    monkeypatch.setattr(paths, "REPOSITORY", copy.parent)
    forget()
    yield add_line
    forget()


@contextmanager
def _full_disk(largest_file: int) -> Iterator[None]:
    """Let the system refuse to write files of more than so many bytes, as it refuses where no space is left."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def full_disk():
    """A context manager: under it, files cannot grow beyond the given number of bytes."""
    return _full_disk


def _real_data_folder() -> Path:
    return Path(os.environ.get("CHEXSTUDY_REAL_DATA") or _REPOSITORY.parent / "shared" / "data")


@pytest.fixture
def real_data():
    """The folder with nih/, nlm_tb/, openi/ and dicom/; the test skips where it is absent."""
    folder = _real_data_folder()
    if not folder.is_dir():
        pytest.skip(f"no real radiographs at {folder} (set CHEXSTUDY_REAL_DATA)")
    return folder


@pytest.fixture
def golden_curator():
    """Path of numbers the published curator gave (masks, loss, usage, updated prototypes) on given embeddings."""
    return _REPOSITORY / "tests" / "golden" / "curator.npz"


_WORDS = (
    *("heart", "lungs", "clear", "left", "right", "small"),
    *("effusion", "mild", "upper", "lower", "opacity", "normal"),
)
_TINY_FINDINGS = ("Mass", "Hernia")


def make_tiny_study(name="tiny", pairs=120, size=36, report_origin="written"):
    """A run with a cohort of noise images whose brightness and wording tell the findings apart, and its pixels."""
    import numpy as np
    import pandas as pd
    from PIL import Image

    from chexstudy.cohort.pixels.store import build_pixel_store
    from chexstudy.runs import Run

    rng = np.random.default_rng(5)
    run = Run(name)
    folder = run.path("source")
    folder.mkdir(parents=True)
    rows = []
    for number in range(pairs):
        mass, hernia = rng.random() < 0.4, rng.random() < 0.1
        pixels = rng.integers(0, 120, (size, size), dtype=np.uint8)
        pixels[:12] += np.uint8(100 * mass)
        pixels[-12:] += np.uint8(100 * hernia)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        words = [*rng.choice(_WORDS, rng.integers(4, 12)), *["mass"] * mass, *["hernia"] * hernia, str(number)]
        rows.append(
            {
                "image_id": f"tiny/{number:04d}",
                "patient_id": f"tiny/p{number // 2}",
                "study_id": f"tiny/s{number}",
                "source": "tiny",
                "split": ("train", "train", "train", "validate", "test")[number // 2 % 5],
                "view": "PA",
                "sex": "FM"[number // 2 % 2],
                "age_years": 50.0,
                "image_path": f"source/{number}.png",
                "report": " ".join(words),
                "report_origin": report_origin,
                "Mass": int(mass),
                "Hernia": int(hernia),
            }
        )
    build_pixel_store(run, pd.DataFrame(rows), size, workers=1)
    return run


@pytest.fixture
def tiny_study(home):
    """The run of `make_tiny_study`, in a home of its own."""
    return make_tiny_study()
