"""A cohort leaves and comes back: what is written, what is not, and that nothing changes on the way."""

import json
import os
import subprocess
import sys
import tarfile

import numpy as np
import pandas as pd
import pytest
from conftest import make_tiny_study

from chexstudy.cli.main import main
from chexstudy.cohort.build import build_cohort
from chexstudy.cohort.export import ExportOptions, _PairReader, export_cohort
from chexstudy.cohort.phantom.plan import PhantomConfig
from chexstudy.cohort.pixels.store import build_pixel_store, open_pixel_store
from chexstudy.cohort.table import finding_columns, outcome_columns, read_cohort
from chexstudy.errors import StudyError
from chexstudy.runs import Run

FORMATS = ["webdataset", "huggingface"]
PHANTOM = PhantomConfig(60, 48, workers=1)
LIBRARY = {"webdataset": "tarfile", "huggingface": "datasets"}

each_format = pytest.mark.parametrize("form", FORMATS)


@pytest.fixture
def study(home):
    return make_tiny_study(pairs=30)


def export(run, folder, form="webdataset", **options):
    pytest.importorskip(LIBRARY.get(form, "tarfile"))
    return export_cohort(run, folder, ExportOptions(form, **options))


def sentence(run, folder, form="webdataset", **options):
    with pytest.raises(StudyError) as caught:
        export(run, folder, form, **options)
    return str(caught.value)


def read_folder(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_members(folder):
    members = {}
    for shard in sorted(folder.glob("*.tar")):
        with tarfile.open(shard) as archive:
            for member in archive:
                assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
                members[member.name] = archive.extractfile(member).read()
    return members


def read_records(folder, form):
    if form == "webdataset":
        return [json.loads(data) for name, data in read_members(folder).items() if name.endswith(".json")]
    tables = [pd.read_parquet(path) for path in sorted(folder.glob("data/*.parquet"))]
    return pd.concat(tables).drop(columns="image").to_dict("records")


@each_format
def test_a_phantom_comes_back_as_it_left(home, form):
    pytest.importorskip(LIBRARY[form])
    build_cohort(Run("left"), "phantom", "", 48, "pad", 0, PHANTOM, workers=1)
    arguments = ["--study", "left", "--to", form, "--out", str(home / "out"), "--shard-images", "7"]
    assert main(["cohort", "export", *arguments, "--with-reports", "--with-patient-ids"]) == 0
    build_cohort(Run("back"), form, str(home / "out"), 48, "pad", 1, PHANTOM, workers=1)
    left, back = (read_cohort(Run(name).path("cohort.parquet")).set_index("image_id") for name in ("left", "back"))
    assert finding_columns(back) == finding_columns(left)
    assert len(left) > 40
    # Outcomes do not leave.
    assert outcome_columns(left)
    left = left.drop(columns=outcome_columns(left))
    pd.testing.assert_frame_equal(back.loc[left.index].drop(columns="image_path"), left.drop(columns="image_path"))
    stores = [open_pixel_store(Run(name)) for name in ("left", "back")]
    assert np.array_equal(*(store.read(left.index) for store in stores))
    assert all((Run("back").folder / path).is_file() for path in back["image_path"])


@each_format
def test_without_ids_and_reports_the_rest_comes_back(study, home, form):
    export(study, home / "out", form)
    build_cohort(Run("back"), form, str(home / "out"), 36, "pad", 1, PHANTOM, workers=1)
    left, back = (read_cohort(run.path("cohort.parquet")).set_index("image_id") for run in (study, Run("back")))
    back = back.loc[left.index]
    same = ["source", "split", "view", "sex", "age_years", *finding_columns(left)]
    pd.testing.assert_frame_equal(back[same], left[same])
    assert set(back["report_origin"]) == {"template"}
    # The same images are of one patient, but nobody is called as before.
    assert (pd.crosstab(left["patient_id"], back["patient_id"]) > 0).sum().eq(1).all()
    assert set(left["patient_id"]).isdisjoint(back["patient_id"])


@each_format
def test_what_is_not_asked_for_does_not_leave(study, home, form):
    export(study, home / "bare", form)
    bare = read_records(home / "bare", form)
    assert len(bare) == 30
    for record in bare:
        assert not {"report", "report_origin", "patient_id", "study_id"} & set(record)
    cohort = read_cohort(study.path("cohort.parquet"))
    everything = b"".join(read_folder(home / "bare").values())
    for text in [*cohort["patient_id"], *cohort["study_id"], *cohort["report"]]:
        assert text.encode() not in everything
    assert len({record["patient"] for record in bare}) == cohort["patient_id"].nunique()
    assert len({record["study"] for record in bare}) == 30
    # The order of the numbers does not tell that of the patients.
    assert [record["patient"] for record in bare] != sorted(record["patient"] for record in bare)
    export(study, home / "full", form, reports=True, patient_ids=True)
    full = read_records(home / "full", form)
    assert {record["patient_id"] for record in full} == set(cohort["patient_id"])


def test_one_line_says_what_was_left_out(study, home, capsys):
    def told(*options):
        assert main(["cohort", "export", "--study", "tiny", "--to", "webdataset", "--out", *options]) == 0
        return capsys.readouterr().out.splitlines()

    assert told(str(home / "a")) == [
        f"30 pairs in 3 shards in {home / 'a'}.",
        "Left out: reports (--with-reports); patient and study ids (--with-patient-ids), numbered anew instead.",
    ]
    assert told(str(home / "b"), "--with-reports", "--with-patient-ids")[1:] == [
        "Reports and patient ids have left with the images."
    ]
    assert told(str(home / "a"))[0] == f"30 pairs in 3 shards in {home / 'a'} (3 were there)."


def test_the_line_says_that_outcomes_stay_and_how_many_ids_tell_the_patient(study, home):
    cohort = read_cohort(study.path("cohort.parquet"))
    build_pixel_store(study, cohort.assign(outcome_death=1, outcome_death_years=2.5), 36, workers=1)
    told = export(study, home / "out", reports=True, patient_ids=True).left_out
    assert told == "Left out: outcomes. Reports and patient ids have left with the images."
    assert not any("outcome" in name for record in read_records(home / "out", "webdataset") for name in record)
    names = {"tiny/0000": "tiny/0", "tiny/0007": "tiny/07", "tiny/0012": "tiny/1", "tiny/0015": "tiny/5"}
    cohort["patient_id"] = cohort["image_id"].map(names).fillna("tiny/p" + cohort["image_id"])
    build_pixel_store(study, cohort, 36, workers=1)
    told = export(study, home / "told").left_out
    assert told.endswith("The image_id of 2 of 30 pairs still contains the patient's identifier.")


@each_format
def test_two_exports_give_the_same_bytes(study, home, form):
    for name in ("a", "b"):
        export(study, home / name, form, shard_images=4, reports=True)
        os.utime(study.path("cohort.parquet"))
    first, second = (read_folder(home / name) for name in ("a", "b"))
    assert len(first) > 6
    assert first == second


@each_format
def test_a_killed_export_goes_on_and_ends_with_the_same_bytes(study, home, form, monkeypatch):
    options = {"shard_images": 4, "reports": True}
    whole = export(study, home / "whole", form, **options)
    encode, calls = _PairReader._encode_stored, []

    def die(reader, values):
        calls.append(values)
        if len(calls) > 13:
            raise KeyboardInterrupt
        return encode(reader, values)

    with monkeypatch.context() as patch:
        patch.setattr(_PairReader, "_encode_stored", die)
        with pytest.raises(KeyboardInterrupt):
            export(study, home / "killed", form, **options)
    assert len(read_folder(home / "killed")) == 3 + 1
    assert export(study, home / "killed", form, **options).written == whole.shards - 3 == 6
    assert read_folder(home / "killed") == read_folder(home / "whole")


def test_a_shard_that_changed_is_written_anew(study, home):
    export(study, home / "out", shard_images=4)
    before = read_folder(home / "out")
    (home / "out" / "train-000001.tar").write_bytes(b"damaged")
    (home / "out" / "test-000000.tar").unlink()
    assert export(study, home / "out", shard_images=4).written == 2
    assert read_folder(home / "out") == before
    assert export(study, home / "out", shard_images=4).written == 0


@each_format
def test_original_images_leave_as_they_are(study, home, form):
    told = export(study, home / "out", form, original_images=True).left_out
    assert told.endswith("What the original files say in their own headers has left too.")
    cohort = read_cohort(study.path("cohort.parquet"))
    originals = {study.path(path).read_bytes() for path in cohort["image_path"]}
    if form == "webdataset":
        left = {data for name, data in read_members(home / "out").items() if name.endswith(".png")}
    else:
        tables = [pd.read_parquet(path) for path in (home / "out" / "data").iterdir()]
        left = {image["bytes"] for table in tables for image in table["image"]}
    assert left == originals


def test_dicom_leaves_only_when_patients_may(study, home):
    cohort = read_cohort(study.path("cohort.parquet"))
    study.path(cohort["image_path"][3]).write_bytes(bytes(128) + b"DICM" + b"PATIENT^NAME")
    asked = sentence(study, home / "a", original_images=True)
    assert asked.startswith("the original image in row 3 of the cohort is DICOM, whose header may name the patient: ")
    assert not list((home / "a").glob("*.tar"))
    export(study, home / "b", original_images=True, patient_ids=True)
    assert sum(name.endswith(".dcm") for name in read_members(home / "b")) == 1
    asked = sentence(study, home / "c", "huggingface", original_images=True, patient_ids=True)
    assert "which Hugging Face images cannot be" in asked
    study.path(cohort["image_path"][0]).unlink()
    asked = sentence(study, home / "d", original_images=True, patient_ids=True)
    assert asked.startswith("the original image in row 0 of the cohort is missing: ")


def test_bad_requests_are_one_sentence(study, home, monkeypatch):
    assert "cannot be exported to 'zip': choose webdataset or huggingface" in sentence(study, home / "out", "zip")
    assert "at least 1 image, not 0" in sentence(study, home / "out", shard_images=0)
    assert "has no cohort.parquet yet: run 01_build_cohort" in sentence(Run("none"), home / "out")
    (home / "file").write_text("")
    assert "is a file: name a folder" in sentence(study, home / "file")
    (home / "full").mkdir()
    (home / "full" / "letter.txt").write_text("")
    assert "is not empty and holds no export" in sentence(study, home / "full")
    (home / "full" / "export.json").write_text("[]")
    assert "is no record of an export" in sentence(study, home / "full")
    export(study, home / "other", reports=True)
    assert "or with other options: name a new or an empty folder" in sentence(study, home / "other")
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setitem(LIBRARY, "huggingface", "tarfile")
    asked = sentence(study, home / "new", "huggingface")
    assert "run `pip install 'chexstudy[interchange]'`" in asked


def test_a_full_disk_is_one_sentence_and_the_rest_goes_on(study, home, full_disk):
    with full_disk(10_000):
        asked = sentence(study, home / "out", shard_images=10)
    assert asked.startswith(f"could not write {home / 'out'}")
    assert not list((home / "out").glob("*.tar"))
    assert export(study, home / "out", shard_images=10).written == 4


def test_the_webdataset_library_reads_the_shards(study, home):
    webdataset = pytest.importorskip("webdataset")
    export(study, home / "out", shard_images=10, reports=True)
    shards = [str(path) for path in sorted((home / "out").glob("*.tar"))]
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode("pil").to_tuple("png", "json", "txt"))
    cohort = read_cohort(study.path("cohort.parquet")).set_index("image_id")
    store = open_pixel_store(study)
    assert len(samples) == 30
    for picture, record, report in samples:
        image_id = record["image_id"]
        assert np.array_equal(np.asarray(picture.convert("L")), store.read([image_id])[0])
        assert report == cohort["report"][image_id]
        assert record["labels"] == {name: int(cohort[name][image_id]) for name in ("Mass", "Hernia")}


def test_the_datasets_library_loads_the_folder(study, home, monkeypatch):
    datasets = pytest.importorskip("datasets")
    export(study, home / "out", "huggingface", shard_images=7, reports=True)
    loaded = datasets.load_dataset(str(home / "out"), cache_dir=str(home / "cache"))
    cohort = read_cohort(study.path("cohort.parquet")).set_index("image_id")
    store = open_pixel_store(study)
    assert {split: len(rows) for split, rows in loaded.items()} == cohort["split"].value_counts().to_dict()
    for row in loaded["test"]:
        assert row["image"].mode == "L"
        assert np.array_equal(np.asarray(row["image"]), store.read([row["image_id"]])[0])
        assert row["report"] == cohort["report"][row["image_id"]]
        assert row["labels"]["Mass"] == cohort["Mass"][row["image_id"]]


def test_pixels_are_written_whatever_was_imported_first():
    # The zlib that comes with gdcm crashes under Pillow if it gets there first.
    program = """
import io
from chexstudy.cohort.images import decode
import numpy as np
from PIL import Image
pixels = np.random.default_rng(0).integers(0, 255, (378, 378), np.uint8)
for effort in (1, 4, 6):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=effort)
    assert np.array_equal(np.asarray(Image.open(file)), pixels)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["phantom/images", "annotations.parquet"])
def test_a_damaged_phantom_is_drawn_again(home, name, capsys):
    def build():
        build_cohort(run, "phantom", "", 48, "pad", 0, PHANTOM, workers=1)
        files = [path for path in run.folder.rglob("*") if path.is_file() and "provenance" not in path.parts]
        return {
            path: path.read_bytes() for path in files if path.name != "manifest.json" and path.parent.name != "pixels"
        }

    run = Run("drawn")
    before = build()
    path = run.path(name) if run.path(name).is_file() else min(run.path(name).iterdir())
    path.write_bytes(before[path][:-1] + bytes([before[path][-1] ^ 1]))
    assert build() == before
    assert f"{name} of study 'drawn' is not what was written there" in capsys.readouterr().out
