import numpy as np
import pandas as pd
import pytest
from PIL import Image

from chexstudy.cli.main import main
from chexstudy.cohort.images.decode import fit_square
from chexstudy.cohort.pixels import convert
from chexstudy.cohort.pixels.convert import StoreFolder, check_room, estimate_conversion
from chexstudy.cohort.pixels.store import build_pixel_store, open_pixel_store, plan_pixel_store, write_pixel_store
from chexstudy.cohort.table import read_cohort, write_cohort
from chexstudy.errors import StudyError
from chexstudy.runs import Run

IMAGES = 7


def image(number):
    return np.random.default_rng(number).integers(0, 255, (50, 40), np.uint8)


@pytest.fixture
def cohort(tmp_path, home):
    """A table with paths relative to its images' folder; the fourth image is no image."""
    folder = tmp_path / "images"
    folder.mkdir()
    names = [f"{number}.png" for number in range(IMAGES)]
    for number, name in enumerate(names):
        Image.fromarray(image(number)).save(folder / name)
    (folder / "3.png").write_text("<html>not found</html>")
    ids = [f"a/{number}" for number in range(IMAGES)]
    table = pd.DataFrame({"image_id": ids, "patient_id": ids, "study_id": ids, "image_path": names})
    table = table.assign(source="a", split="train", view="PA", sex="F", age_years=40.0)
    table = table.assign(report="Clear lungs.", report_origin="written", Mass=pd.array([0] * IMAGES, dtype="Int8"))
    write_cohort(table, tmp_path / "table.parquet")
    return table


def run_convert(*arguments):
    return main(["cohort", "convert", *map(str, arguments)])


def test_a_table_becomes_a_store_in_any_folder(cohort, tmp_path, capsys):
    given = ["--cohort", tmp_path / "table.parquet", "--root", tmp_path / "images", "--out", tmp_path / "store"]
    assert run_convert(*given, "--size", 32, "--workers", 1, "--shard-images", 3) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("7 images to read, 7.17e-06 GB to write, about ")
    assert lines[-1] == "6 images of 32 pixels in 3 shards, 1 in quarantine: 1 not an image (a)."
    store = open_pixel_store(StoreFolder(tmp_path / "store"))
    np.testing.assert_array_equal(store.read(["a/6", "a/2"]), [fit_square(image(6), 32), fit_square(image(2), 32)])
    kept = read_cohort(tmp_path / "store/cohort.parquet")
    assert list(kept["image_id"]) == list(store.image_ids)
    assert kept["image_path"][0] == str(tmp_path / "images/0.png")
    assert list(pd.read_parquet(tmp_path / "store/quarantine.parquet")["image_id"]) == ["a/3"]
    assert run_convert(*given, "--size", 32, "--workers", 1, "--shard-images", 3) == 0
    assert "is current: nothing to do" in capsys.readouterr().out
    # Without a root, paths start at the folder of the table.
    write_cohort(cohort, tmp_path / "images/table.parquet")
    given = ["--cohort", tmp_path / "images/table.parquet", "--out", tmp_path / "other"]
    assert run_convert(*given, "--size", 32, "--workers", 1) == 0
    assert len(open_pixel_store(StoreFolder(tmp_path / "other"))) == 6
    with pytest.raises(StudyError, match=r"table\.parquet is a file: name a folder for the pixel store\.$"):
        StoreFolder(tmp_path / "table.parquet")


def test_a_study_is_converted_to_another_size_and_its_quarantine_is_looked_at_again(cohort, tmp_path, capsys):
    run = Run("mine")
    build_pixel_store(run, cohort, 32, root=tmp_path / "images")
    assert run_convert("--study", "mine", "--size", 36, "--fit", "pad", "--workers", 1) == 0
    store = open_pixel_store(run)
    assert (len(store), store.size, store.fit) == (6, 36, "pad")
    assert plan_pixel_store(run, cohort, 36, "pad", tmp_path / "images").is_current
    assert list(pd.read_parquet(run.path("quarantine.parquet"))["image_id"]) == ["a/3"]
    Image.fromarray(image(3)).save(tmp_path / "images/3.png")
    assert run_convert("--study", "mine", "--size", 36, "--workers", 1) == 0
    assert len(open_pixel_store(run)) == 7
    assert pd.read_parquet(run.path("quarantine.parquet")).empty
    assert capsys.readouterr().out.splitlines()[-1] == "7 images of 36 pixels in 1 shard, 0 in quarantine."


def test_a_conversion_that_was_stopped_says_what_is_left(cohort, tmp_path, capsys, monkeypatch):
    given = ["--cohort", tmp_path / "table.parquet", "--root", tmp_path / "images", "--out", tmp_path / "store"]
    given += ["--size", 32, "--workers", 1, "--shard-images", 2]
    assert run_convert(*given) == 0
    (tmp_path / "store/pixels/shard-00002.npy").unlink()
    capsys.readouterr()
    assert run_convert(*given) == 0
    lack, estimate, _ = capsys.readouterr().out.splitlines()
    assert "the pixel store lacks" in lack
    assert estimate.startswith("2 images to read, 2.05e-06 GB to write, about 1 s (5 images are in fin")


def test_check_reads_every_shard(cohort, tmp_path, capsys):
    run = Run("mine")
    write_pixel_store(run, plan_pixel_store(run, cohort, 32, root=tmp_path / "images", images_a_shard=3))
    assert run_convert("--study", "mine", "--check") == 0
    assert capsys.readouterr().out == f"{run.path('pixels')}: 3 shards, every hash as written.\n"
    changed = np.load(run.path("pixels/shard-00001.npy"))
    changed[0] += 1
    np.save(run.path("pixels/shard-00001.npy"), changed)
    assert run_convert("--study", "mine", "--check") == 2
    assert "shard-00001.npy is damaged, its SHA-256" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--study", "mine", "--size", "0"], "the image size must be a whole number of pixels from 1 to 65536, not 0."),
        (["--study", "mine", "--size", "9", "--workers", "0"], "the number of processes that read images must be 1 or"),
        (["--study", "mine", "--size", "9", "--shard-images", "0"], "a shard of the pixel store must hold 1 or more"),
        (["--study", "nobody", "--size", "9"], "study 'nobody' has no cohort.parquet yet: run 01_build_cohort first."),
        (["--study", "nobody", "--check"], "study 'nobody' has no pixels/manifest.json yet"),
        (["--cohort", "absent.parquet", "--out", "o", "--size", "9"], "there is no cohort table at "),
    ],
)
def test_mistakes_are_one_sentence(cohort, tmp_path, capsys, arguments, sentence):
    build_pixel_store(Run("mine"), cohort, 32, root=tmp_path / "images")
    assert run_convert(*arguments) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(sentence)
    assert shown.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "say what to convert: --study S, or --cohort TABLE.parquet and --out FOLDER"),
        (["--out", "o", "--size", "9"], "--cohort names the table to convert"),
        (["--study", "mine"], "--size says how many pixels a side the stored images have"),
        (["--study", "mine", "--out", "o", "--size", "9"], "--study has a cohort and a place of its own"),
    ],
)
def test_a_call_that_leaves_something_out_is_one_sentence(home, capsys, arguments, sentence):
    with pytest.raises(SystemExit) as caught:
        run_convert(*arguments)
    assert caught.value.code == 2
    assert sentence in capsys.readouterr().err


def test_a_disk_that_is_too_small_is_said_before_the_work(cohort, tmp_path, monkeypatch):
    check_room(tmp_path / "not/there/yet", 1)
    run = StoreFolder(tmp_path / "store")
    plan = plan_pixel_store(run, cohort, 32, root=tmp_path / "images")
    free = convert.shutil._ntuple_diskusage(100, 95, 5)
    monkeypatch.setattr(convert.shutil, "disk_usage", lambda _: free)
    said = f"^the pixel store needs 7.17e-06 GB and the disk of {tmp_path / 'store'} has 5e-09 GB free: free some"
    with pytest.raises(StudyError, match=said):
        convert.convert_cohort(run, plan, workers=1)
    assert not run.folder.exists()


def test_the_estimate_counts_images_and_bytes_and_divides_the_time(cohort, tmp_path, monkeypatch):
    plan = plan_pixel_store(StoreFolder(tmp_path / "store"), cohort, 32, root=tmp_path / "images")
    clock = iter([10.0, 17.0, 10.0, 17.0])
    monkeypatch.setattr(convert.time, "perf_counter", lambda: next(clock))
    assert str(estimate_conversion(plan, workers=1)) == "7 images to read, 7.17e-06 GB to write, about 7 s."
    assert estimate_conversion(plan, workers=2).seconds == 3.5
