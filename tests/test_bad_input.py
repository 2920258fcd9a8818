"""Bad input as a user meets it: a messy folder and the real first notebook, through the command line."""

import numpy as np
import pandas as pd
from PIL import Image
from test_dicom import make_dicom, to_bytes

from chexstudy.cli.main import main
from chexstudy.cohort.images.decode import fit_square
from chexstudy.cohort.pixels.store import open_pixel_store
from chexstudy.runs import Run
from chexstudy.workflow.runner import list_notebooks

MAPPING = "columns: {image_path: File, patient_id: Patient, report: Report, split: Set, findings: [Mass]}\n"
SIZE = 40


def make_pixels(seed):
    return np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE), np.uint8)


def make_folder(folder, **changes):
    """Fifteen good images of fifteen patients, with their table and its mapping."""
    folder.mkdir(exist_ok=True)
    count = 15
    for number in range(count):
        Image.fromarray(make_pixels(number)).save(folder / f"{number:02d}.png")
    columns = {
        "File": [f"{number:02d}.png" for number in range(count)],
        "Patient": [f"p{number:02d}" for number in range(count)],
        "Report": "FINDINGS: Clear lungs.",
        "Set": ["train"] * 9 + ["validate"] * 3 + ["test"] * 3,
        "Mass": [0, 1, -1] * 5,
    }
    table = pd.DataFrame(columns)
    for name, cells in changes.items():
        table[name] = table[name].astype(object)
        for row, cell in cells.items():
            table.loc[row, name] = cell
    table.to_csv(folder / "labels.csv", index=False)
    (folder / "cohort.yaml").write_text(MAPPING)
    return folder


def build(folder):
    options = ["--study", "mine", "-p", "image_size", str(SIZE), "-p", "workers", "1"]
    return main(["cohort", "build", "--source", "folder", "--data-root", str(folder), *options])


def test_bad_files_are_set_aside_and_unusual_ones_read(home, capsys):
    renamed = {4: "04.dcm", 5: "05.dcm", 7: "absent.png"}
    folder = make_folder(home / "mine", File=renamed, Report={6: "FINDINGS: ___"})
    grey = make_pixels(0)
    Image.fromarray(np.dstack([grey, grey, grey, np.full_like(grey, 255)]), "RGBA").save(folder / "00.png")
    Image.fromarray(make_pixels(1).astype(np.uint16) * 257).save(folder / "01.png")
    (folder / "02.png").write_bytes((folder / "02.png").read_bytes()[:700])
    (folder / "03.png").write_bytes(b"not an image at all")
    (folder / "04.dcm").write_text("<html><body>403 Forbidden</body></html>")
    dataset = make_dicom(255 - make_pixels(5), PhotometricInterpretation="MONOCHROME1")
    (folder / "05.dcm").write_bytes(to_bytes(dataset))
    Image.fromarray(np.full((SIZE, SIZE), 80, np.uint8)).save(folder / "08.png")

    assert build(folder) == 0

    shown = capsys.readouterr()
    assert "Traceback" not in shown.out + shown.err
    assert "9 usable pairs of 9 patients, 6 set aside" in shown.out
    quarantine = pd.read_parquet(Run("mine").path("quarantine.parquet"))
    assert dict(zip(quarantine.image_id, quarantine.reason, strict=True)) == {
        "folder/02.png": "truncated",
        "folder/03.png": "not an image",
        "folder/04.dcm": "not an image",
        "folder/06.png": "empty report",
        "folder/absent.png": "missing",
        "folder/08.png": "blank",
    }
    stored = open_pixel_store(Run("mine"))
    for image_id, number in {"folder/00.png": 0, "folder/01.png": 1, "folder/05.dcm": 5, "folder/09.png": 9}.items():
        np.testing.assert_allclose(stored.read([image_id])[0], fit_square(make_pixels(number), SIZE), atol=2)


def test_a_broken_table_is_one_sentence(tmp_path, capsys):
    assert main(["cohort", "check", str(make_folder(tmp_path / "mine", Mass={3: 2}))]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("labels.csv: line 5, column 'Mass' holds '2'; a label is 1 (present), 0")


def test_a_table_without_a_needed_column_is_one_sentence_and_leaves_no_cohort(home, capsys):
    folder = make_folder(home / "mine")
    pd.read_csv(folder / "labels.csv").drop(columns="Patient").to_csv(folder / "labels.csv", index=False)
    assert build(folder) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("labels.csv has no column 'Patient' for patient_id; it has 'File', 'Report', 'Set', 'Mass'")
    assert second.endswith("01_build_cohort.failed.ipynb")
    records = {".lock", "notebooks", "provenance", "study.json", "timings"}
    assert {path.name for path in Run("mine").folder.iterdir()} == records


def test_a_notebook_of_an_empty_study_says_what_to_run_first(home, capsys):
    assert main(["run", "05", "--profile", "debug", "--study", "empty"]) == 2
    assert capsys.readouterr().err.startswith("study 'empty' has no cohort.parquet yet: run 01_build_cohort first.\n")


def test_a_missing_data_folder_stops_the_first_notebook(home, capsys):
    assert main(["run", "all", "--profile", "nlm_tb", "-p", "data_root", "/nonexistent"]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("there is no folder /nonexistent: set data_root to the folder that holds the Shenzhen")
    assert "Traceback" not in shown.out + shown.err
    assert shown.out.count("not run") == len(list_notebooks()) - 1
