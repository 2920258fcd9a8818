"""What the tests share: a home of their own, and the real radiographs where they are at hand."""

import os
from pathlib import Path

import pytest

_REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A fresh CHEXSTUDY_HOME: nothing a test writes lands in the checkout."""
    monkeypatch.setenv("CHEXSTUDY_HOME", str(tmp_path))
    return tmp_path


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
    """Path of the published curator's golden numbers; the test skips where they are absent."""
    path = _real_data_folder().parent / "golden" / "curator.npz"
    if not path.is_file():
        pytest.skip(f"no golden numbers at {path} (set CHEXSTUDY_REAL_DATA)")
    return path
