import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow
import pytest
from pyarrow import parquet
from test_adapters_webdataset import picture

from chexstudy.cohort.adapters import build_source
from chexstudy.cohort.build import build_cohort
from chexstudy.cohort.phantom.plan import PhantomConfig
from chexstudy.errors import StudyError
from chexstudy.runs import Run


def rows(numbers):
    return {
        "image": [{"bytes": picture(number), "path": f"scan{number}.png"} for number in numbers],
        "subject_id": [number // 2 for number in numbers],
        "text": [f"Report {number}." for number in numbers],
        "Gender": [("F", "M", None)[number % 3] for number in numbers],
        "labels": [{"Mass": number % 2, "Nodule": None} for number in numbers],
        "tokens": [[1, 2] for _ in numbers],
    }


def write_parquet(path, columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), path)
    return path


@pytest.fixture
def folder(tmp_path):
    write_parquet(tmp_path / "set" / "data" / "part-a.parquet", rows(range(4)))
    write_parquet(tmp_path / "set" / "data" / "part-b.parquet", rows(range(4, 6)))
    return tmp_path / "set"


@pytest.fixture
def unpack_to(tmp_path):
    return tmp_path / "study" / "images"


def build(data_root, unpack_to, **options):
    return build_source("huggingface", data_root, 0, unpack_to, **options)


def sentence(data_root, unpack_to, **options):
    with pytest.raises(StudyError) as caught:
        build(data_root, unpack_to, **options)
    return str(caught.value)


def test_parquet_files_become_a_cohort_without_the_library(folder, unpack_to, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    cohort = build(folder, unpack_to)
    assert list(cohort["image_id"]) == [f"huggingface/scan{number}.png" for number in range(6)]
    assert list(cohort["patient_id"]) == [f"huggingface/{number // 2}" for number in range(6)]
    assert list(cohort["report"]) == [f"Report {number}." for number in range(6)]
    assert list(cohort["sex"]) == ["F", "M", "unknown"] * 2
    assert list(cohort["Mass"]) == [0, 1] * 3
    assert cohort["Nodule"].isna().all()
    assert [Path(path).read_bytes() for path in cohort["image_path"]] == [picture(number) for number in range(6)]


def test_plain_bytes_and_other_names_are_read_too(tmp_path, unpack_to):
    columns = rows(range(6))
    columns["xray"] = [image["bytes"] for image in columns.pop("image")]
    write_parquet(tmp_path / "set" / "a.parquet", columns)
    asked = sentence(tmp_path / "set", unpack_to)
    assert "a.parquet has no image column: say which holds the images by 'columns: {image_path: NAME}'" in asked
    cohort = build(tmp_path / "set", unpack_to, columns={"image_path": "xray"}, source="ours")
    assert [Path(path).read_bytes() for path in cohort["image_path"]] == [picture(number) for number in range(6)]
    # Without a name, an image is called by its bytes: the order of the rows plays no part.
    names = dict(zip(cohort["report"], cohort["image_id"], strict=True))
    assert all(name.startswith("ours/") and len(name) == 5 + 24 for name in names.values())
    write_parquet(tmp_path / "set" / "a.parquet", {name: cells[::-1] for name, cells in columns.items()})
    again = build(tmp_path / "set", unpack_to, columns={"image_path": "xray"}, source="ours")
    assert dict(zip(again["report"], again["image_id"], strict=True)) == names
    # Two rows of the same image keep apart.
    write_parquet(tmp_path / "set" / "a.parquet", columns | {"xray": [columns["xray"][0]] * 3 + columns["xray"][3:]})
    twice = list(build(tmp_path / "set", unpack_to, columns={"image_path": "xray"})["image_id"])
    assert twice[1:3] == [f"{twice[0]}-1", f"{twice[0]}-2"]


def test_a_saved_dataset_is_read_without_the_library(tmp_path, unpack_to, monkeypatch):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "subject_id": datasets.Value("int64"),
            "text": datasets.Value("string"),
            "Gender": datasets.ClassLabel(names=["F", "M"]),
            "labels": {"Mass": datasets.Value("int8"), "Nodule": datasets.Value("int8")},
            "tokens": datasets.List(datasets.Value("int64")),
        }
    )
    splits = {"train": range(4), "validation": range(4, 6), "test": range(6, 8)}
    saved = datasets.DatasetDict(
        {name: datasets.Dataset.from_dict(rows(numbers), features=features) for name, numbers in splits.items()}
    )
    saved.save_to_disk(str(tmp_path / "set"))
    saved["train"].save_to_disk(str(tmp_path / "one"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    cohort = build(tmp_path / "set", unpack_to)
    assert list(cohort["split"]) == ["train"] * 4 + ["validate"] * 2 + ["test"] * 2
    assert list(cohort["sex"]) == ["F", "M", "unknown", "F", "M", "unknown", "F", "M"]
    assert list(cohort["Mass"]) == [0, 1] * 4
    assert [Path(path).read_bytes() for path in cohort["image_path"]] == [picture(number) for number in range(8)]
    times = [Path(path).stat().st_mtime_ns for path in cohort["image_path"]]
    assert [Path(path).stat().st_mtime_ns for path in build(tmp_path / "set", unpack_to)["image_path"]] == times
    assert len(build(tmp_path / "one", unpack_to)) == 4
    next((tmp_path / "set" / "train").glob("*.arrow")).write_bytes(b"x")
    assert "is damaged or cut short" in sentence(tmp_path / "set", unpack_to)
    next((tmp_path / "set" / "train").glob("*.arrow")).unlink()
    assert "which its own record names" in sentence(tmp_path / "set", unpack_to)


def test_parquet_that_the_library_wrote_names_its_classes(tmp_path, unpack_to):
    datasets = pytest.importorskip("datasets")
    columns = rows(range(6)) | {"Mass": [0, 1, 2, 0, 1, 2]}
    del columns["labels"]
    dataset = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    dataset = dataset.cast_column("Mass", datasets.ClassLabel(names=["absent", "present", "uncertain"]))
    (tmp_path / "set").mkdir()
    dataset.to_parquet(str(tmp_path / "set" / "a.parquet"))
    cohort = build(tmp_path / "set", unpack_to, columns={"findings": ["Mass"]})
    assert list(cohort["Mass"]) == [0, 1, -1, 0, 1, -1]


def test_names_of_files_tell_the_split(tmp_path, unpack_to):
    names = ("data/train-00000-of-00001.parquet", "default/validation/0000.parquet", "test.parquet")
    for number, name in enumerate(names):
        write_parquet(tmp_path / "set" / name, rows([2 * number]))
    cohort = build(tmp_path / "set", unpack_to)
    told = dict(zip(cohort["image_id"].str[-5], cohort["split"], strict=True))
    assert told == {"0": "train", "2": "validate", "4": "test"}
    write_parquet(tmp_path / "set" / "fold7-00000-of-00001.parquet", rows(range(4)))
    asked = sentence(tmp_path / "set", unpack_to)
    assert "holds 'fold7'; expected one of test, test_enriched, train, validate" in asked


def test_what_is_no_dataset_is_said(tmp_path, unpack_to, folder):
    assert "there is no folder" in sentence(tmp_path / "none", unpack_to)
    assert "no data folder was given" in sentence("", unpack_to)
    (tmp_path / "empty").mkdir()
    assert "holds no parquet files" in sentence(tmp_path / "empty", unpack_to)
    write_parquet(tmp_path / "void" / "a.parquet", rows([]) | {"image": pyarrow.array([], pyarrow.binary())})
    assert "there is no image in a.parquet" in sentence(tmp_path / "void", unpack_to)
    (folder / "state.json").write_text("{}")
    assert "cannot be loaded" in sentence(folder, unpack_to)


def test_image_columns_that_are_not_there_or_several_are_one_sentence(folder, unpack_to):
    said = sentence(folder, unpack_to, columns={"image_path": "xray"})
    assert "has no column 'xray' for image_path; it has 'image', " in said
    write_parquet(folder / "data" / "part-a.parquet", rows(range(4)) | {"mask": rows(range(4))["image"]})
    assert "data/part-a.parquet has several image columns (image, mask)" in sentence(folder, unpack_to)
    assert len(build(folder, unpack_to, columns={"image_path": "image"})) == 6
    write_parquet(folder / "data" / "part-a.parquet", {"text": ["x"], "image": ["a.png"]})
    assert "has no image column" in sentence(folder, unpack_to)


def test_patients_are_never_guessed(folder, unpack_to):
    columns = rows(range(6))
    del columns["subject_id"]
    write_parquet(folder / "data" / "part-a.parquet", columns)
    (folder / "data" / "part-b.parquet").unlink()
    assert "if every image is of another patient, say 'patient_id: none'" in sentence(folder, unpack_to)
    assert build(folder, unpack_to, columns={"patient_id": "none"})["patient_id"].is_unique


@pytest.mark.parametrize("damage", ["cut", "overwritten", "empty"])
def test_a_damaged_file_is_named(folder, unpack_to, damage):
    file = folder / "data" / "part-b.parquet"
    data = file.read_bytes()
    file.write_bytes({"cut": data[:-100], "overwritten": data[:4] + b"\xff" * 3000 + data[3004:], "empty": b""}[damage])
    assert "part-b.parquet is damaged or cut short" in sentence(folder, unpack_to)


def test_images_that_are_not_there_go_to_quarantine_and_none_comes_from_elsewhere(home):
    folder = home / "set"
    columns = rows(range(5))
    (home / "secret.png").write_bytes(picture(9))
    folder.mkdir()
    (folder / "inside.png").write_bytes(picture(8))
    elsewhere = ("../secret.png", str(home / "secret.png"), "https://example.org/a.png", "inside.png")
    columns["image"][1:] = [{"bytes": None, "path": path} for path in elsewhere]
    write_parquet(folder / "a.parquet", columns)
    phantom = PhantomConfig(60, 48, workers=1)
    store, _ = build_cohort(Run("mine"), "huggingface", str(folder), 40, "pad", 0, phantom, workers=1)
    assert list(store.image_ids) == ["huggingface/scan0.png", "huggingface/inside.png"]
    inside = np.random.default_rng(8).integers(0, 255, (40, 40), np.uint8)
    assert np.array_equal(store.read(["huggingface/inside.png"])[0], inside)
    quarantine = pd.read_parquet(Run("mine").path("quarantine.parquet"))
    assert list(quarantine["reason"]) == ["missing"] * 3


def test_columns_cannot_speak_for_the_archive_and_a_pipe_is_no_part(folder, unpack_to):
    os.mkfifo(folder / "data" / "pipe.parquet")
    assert len(build(folder, unpack_to)) > 0
    named = rows(range(2)) | {"__image__": ["/etc/hostname"] * 2}
    write_parquet(folder / "data" / "part-z.parquet", named)
    assert sentence(folder, unpack_to).startswith("sample 1 of data/part-z has a field '__image__'")
