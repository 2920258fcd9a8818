"""What a run would stumble over is found before an image is read: problems with status 2, remarks beside them."""

import os
import shutil
import unicodedata

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_adapters_nih import make_folder as make_nih_folder

from chexstudy.cohort.adapters import guess_source
from chexstudy.cohort.check import check_source, check_table
from chexstudy.cohort.table import validate_cohort
from chexstudy.errors import StudyError

MAPPING = "columns: {image_path: File, patient_id: Patient, findings: [Mass], report: Report}\n"
NAMES = [f"img{number:02d}.png" for number in range(12)]


def make_table(**changes):
    """Twelve images of six patients, each with one image of either class."""
    numbers = range(12)
    columns = {
        "File": NAMES,
        "Patient": [f"P{number // 2}" for number in numbers],
        "Mass": [number % 2 for number in numbers],
        "Report": ["Clear lungs." for _ in numbers],
    }
    return pd.DataFrame(columns | changes)


def make_folder(folder, mapping=MAPPING, names=NAMES, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 40), np.uint8)
        Image.fromarray(pixels).save(folder / name)
    make_table(**changes).to_csv(folder / "t.csv", index=False)
    (folder / "cohort.yaml").write_text(mapping)
    return folder


def check(folder):
    found = check_source(folder)
    assert "P3" not in " ".join((*found.problems, *found.remarks))
    assert "Clear" not in " ".join((*found.problems, *found.remarks))
    return found


def spell(change):
    return [change(f"P{number // 2}") if number % 2 else f"P{number // 2}" for number in range(12)]


@pytest.mark.parametrize(
    ("change", "is_told"),
    [
        (lambda name: name + " ", False),
        (lambda name: "\u00a0" + name, False),
        (lambda name: name + "\u200b", False),
        (str.lower, True),
        (lambda name: name.replace("P", "P00"), True),
        (lambda name: name.replace("P", "Ｐ"), True),
    ],
    ids=["blank behind", "no-break blank", "no width", "case", "zeros", "full width"],
)
def test_a_patient_is_in_one_split_however_it_is_spelt(tmp_path, change, is_told):
    found = check(make_folder(tmp_path, Patient=spell(change)))
    assert found.cohort.patient_id.nunique() == 6
    assert found.cohort.groupby(np.arange(12) // 2)["split"].nunique().max() == 1
    told = "6 patients are written in several ways (letter case, zeros in front): each was taken for one."
    assert found.remarks == ((told,) if is_told else ())


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_whole_numbers_are_one_patient_with_and_without_decimals(tmp_path, kind):
    folder = make_folder(tmp_path)
    spelt = [f"{number // 2}.0" if number % 2 else f"{number // 2}" for number in range(12)]
    table = make_table(Patient=spelt)
    (folder / "t.csv").unlink()
    table.to_csv(folder / "t.csv", index=False) if kind == "csv" else table.to_parquet(folder / "t.parquet")
    assert sorted(check(folder).cohort.patient_id.unique()) == [f"folder/{number}" for number in range(6)]


@pytest.mark.parametrize("word", ["nan", "NA", "Unknown", "-", " "])
def test_a_word_for_nothing_is_no_patient(tmp_path, word):
    patients = ["P0", "P1", "P2", word, *[f"P{number}" for number in range(4, 10)], word, word]
    assert check(make_folder(tmp_path, Patient=patients)).problems == (
        "t.csv: line 5, column 'Patient' is empty (3 rows are; nan, unknown or -1 say no more): fill it in.",
    )


def test_a_patient_in_two_splits_by_spelling_alone_is_refused(tmp_path):
    split = ["train", "test", *["train"] * 5, "val", "val", "val", "test", "test"]
    folder = make_folder(tmp_path, MAPPING.replace("}", ", split: Set}"), Patient=spell(str.lower), Set=split)
    assert check(folder).problems[0].startswith("t.csv: line 2 (train) and line 3 (test) are of one patient; 2 ")
    cohort = check(make_folder(tmp_path / "b")).cohort
    spoilt = cohort.assign(patient_id=["s/A1", "s/a1", *cohort.patient_id[2:]], split=["train", *["test"] * 11])
    with pytest.raises(StudyError, match=r"row 0 \(train\) and row 1 \(test\) are of one patient"):
        validate_cohort(spoilt)


def test_splits_that_a_run_needs_are_asked_for(tmp_path):
    with_split = MAPPING.replace("}", ", split: Set}")
    found = check(make_folder(tmp_path / "a", with_split, Set=["train"] * 8 + ["val"] * 4))
    assert found.problems == (
        "no image is in the split test, which training or evaluation needs: give some patients that split, or add "
        "patients if they are split at random.",
    )
    found = check(make_folder(tmp_path / "b", Patient=["P1"] * 12))
    assert found.problems == (
        "all 12 images that can be used are of one patient, whom no split can share: check the column of patients.",
    )


def test_findings_of_one_class_cannot_be_measured(tmp_path):
    told = check(make_folder(tmp_path / "a", Mass=[1] * 12)).problems
    assert [problem.split(", so")[0] for problem in told] == [
        "no finding is both present and absent in the split validate",
        "no finding is both present and absent in the split test",
    ]
    mapping = MAPPING.replace("[Mass]", "[Mass, Nodule]")
    found = check(make_folder(tmp_path / "b", mapping, Nodule=[0] * 12))
    assert found.problems == ()
    assert found.remarks == ("Nodule: not both present and absent anywhere, so not measured.",)
    assert check_table(found.cohort).remarks == found.remarks


def test_rows_and_images_without_the_other_are_named_the_first_ten(tmp_path):
    folder = make_folder(tmp_path)
    gone = make_table().assign(File=[f"gone{number}.png" for number in range(12)])
    pd.concat([gone[:11], make_table()]).to_csv(folder / "t.csv", index=False)
    for number in range(11):
        (folder / f"more{number:02d}.png").write_text(f"{number}")
    found = check(folder)
    assert found.problems == ()
    assert found.remarks == (
        "rows whose image file is not there, which go to quarantine: line 2, line 3, line 4, line 5, line 6, line 7, "
        "line 8, line 9, line 10, line 11 and 1 more.",
        f"images without a row, which take no part: {', '.join(f'more{n:02d}.png' for n in range(10))} and 1 more.",
    )


def test_empty_files_and_copies_are_told_before_anything_is_read(tmp_path):
    folder = make_folder(tmp_path)
    (folder / "img01.png").write_bytes(b"")
    shutil.copy(folder / "img02.png", folder / "img03.png")
    (folder / "img05.png").write_text("no image, which is found when it is read")
    found = check(folder)
    assert found.problems == ()
    assert found.remarks == (
        "rows whose image file is empty, which go to quarantine: line 3.",
        "rows whose image files hold the same bytes: line 4 = line 5.",
    )
    shutil.copy(folder / "img02.png", folder / "img11.png")
    shutil.copy(folder / "img02.png", folder / "img00.png")
    split = ["train"] * 6 + ["val"] * 2 + ["test"] * 4
    make_table(Set=split).to_csv(folder / "t.csv", index=False)
    (folder / "cohort.yaml").write_text(MAPPING.replace("}", ", split: Set}"))
    assert check(folder).remarks[1] == (
        "rows whose image files hold the same bytes (1 of them in several splits, of which the one nearest to the test "
        "keeps them): line 2 = line 4 = line 5 = line 13."
    )


def test_reports_that_say_nothing_are_told(tmp_path):
    reports = ["nan", "FINDINGS: ___", *["Clear lungs."] * 10]
    found = check(make_folder(tmp_path, Report=reports))
    assert found.remarks == (
        "rows whose report says nothing, which go to quarantine: line 3.",
        "1 of 12 images have no report: only objective self_supervised learns from them.",
    )
    assert list(found.cohort.report[:2]) == ["", "FINDINGS: ___"]
    assert list(found.cohort.report_origin[:3]) == ["none", "written", "written"]


def test_columns_that_nothing_uses_are_told_with_what_they_could_be(tmp_path):
    found = check(make_folder(tmp_path, Age=50, Sex="F", Notes="x"))
    assert (found.problems, len(found.cohort)) == ((), 12)
    assert found.remarks == ("Age, Sex, Notes are not used: add sex: Sex, age_years: Age.",)


def test_names_in_another_form_case_or_without_ending_are_found(tmp_path):
    names = [f"é {number}.PNG" for number in range(12)]
    folder = make_folder(tmp_path, names=[unicodedata.normalize("NFD", name).replace("PNG", "png") for name in names])
    for spelt in (names, [name.replace(".PNG", "") for name in names], [f"É {number}.png" for number in range(12)]):
        make_table(File=spelt).to_csv(folder / "t.csv", index=False)
        found = check(folder)
        assert (found.problems, found.remarks) == ((), ())
        assert list(found.cohort.image_id) == [f"folder/{name}" for name in spelt]
        assert all(map(os.path.isfile, found.cohort.image_path))


def test_linked_folders_are_walked_once_and_odd_files_are_no_images(tmp_path):
    outside = make_folder(tmp_path / "outside")
    folder = make_folder(tmp_path / "x", "images: pictures\n" + MAPPING, names=[])
    (folder / "pictures").symlink_to(outside)
    (outside / "loop").symlink_to(outside)
    (outside / ".hidden.png").write_bytes(b"x")
    (outside / "img00.png").unlink()
    os.mkfifo(outside / "img00.png")
    (outside / "img01.png").unlink()
    (outside / "img01.png").symlink_to("/dev/zero")
    make_table(File=[*NAMES[:11], "x" * 300 + ".png"]).to_csv(folder / "t.csv", index=False)
    found = check(folder)
    assert found.problems == ()
    assert found.remarks == (
        "rows whose image file is not there, which go to quarantine: line 2, line 3, line 13.",
        "images without a row, which take no part: img11.png.",
    )


@pytest.mark.parametrize("column", ["sex", "view", "split", "age_years", "findings"])
@pytest.mark.parametrize("taken", ["Patient", "Report"])
def test_a_column_taken_for_another_is_not_shown(tmp_path, column, taken):
    mapping = f"columns: {{image_path: File, patient_id: Patient, findings: [Mass], {column}: {taken}}}\n"
    if column == "findings":
        mapping = mapping.replace("findings: [Mass], ", "")
    patients = [f"Smith{number}" for number in range(12)]
    (problem,) = check(make_folder(tmp_path, mapping, Patient=patients)).problems
    assert problem.startswith(f"t.csv: line 2, column {taken!r} holds a text of ")
    assert "Smith" not in problem


@pytest.mark.parametrize("nothing", ["", " no", " ~", " ''", " 0", " []", " false", " nan"])
def test_only_the_word_none_makes_every_image_another_patient(tmp_path, nothing):
    mapping = f"columns:\n  image_path: File\n  findings: [Mass]\n  patient_id:{nothing}\n"
    (problem,) = check(make_folder(tmp_path / "a", mapping)).problems
    assert problem.endswith(
        "if every image is of another patient, say 'patient_id: none' (images of one patient in two splits would make "
        "results too good)."
    )
    mapping = "columns:\n  image_path: File\n  findings: [Mass]\n  patient_id: none\n"
    assert check(make_folder(tmp_path / "b", mapping)).cohort.patient_id.is_unique


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("source:", "the mapping's entry 'source' is empty: give it a text, or take the entry out."),
        ("source: [a]", "the mapping's entry 'source' must be a text, not a list: put it in quotes."),
        ("source: a/b", "the mapping's entry 'source' is the first part of every image_id: write it without a '/'."),
        ("images:", "the mapping's entry 'images' is empty: give it a text, or take the entry out."),
        ("images: {a: b}", "the mapping's entry 'images' must be a text, not pairs: put it in quotes."),
        ("table: 2024", "there is no table "),
        ("fractions: 3", "the mapping's entry 'fractions' must be pairs of 'name: value'."),
        ("fractions: {train: x}", "the mapping's entry 'fractions: train' must be a number."),
        ("word_budget: 0", "the mapping's entry 'word_budget' must be a whole number of words, 1 or more."),
        ("values: {labels: {x: y}}", "the mapping's entry 'values: labels: x' is none of 1, 0, -1 or null: choose"),
        ("values: {view:}", "the mapping's entry 'view' must be pairs of 'name: value'."),
        ("colour: red", "the mapping has no entry 'colour': its entries are table, images, source, "),
        ("columns: {}", "the mapping "),
    ],
)
def test_an_entry_of_another_kind_is_named(tmp_path, entry, said):
    (problem,) = check(make_folder(tmp_path, MAPPING + entry + "\n")).problems
    assert problem.startswith(said)


def test_names_of_columns_and_of_the_source_are_texts_as_written(tmp_path):
    mapping = "source: 2024\ncolumns: {image_path: File, patient_id: No, findings: [on, 007]}\n"
    table = {"No": make_table().Patient, "on": make_table().Mass, "007": make_table().Mass}
    cohort = check(make_folder(tmp_path, mapping, **table)).cohort
    assert cohort.image_id[0] == "2024/img00.png"
    assert list(cohort.columns[-2:]) == ["on", "007"]


def test_every_source_is_told_by_what_its_folder_holds(tmp_path):
    for name, source in (
        ("a/train-000000.tar", "webdataset"),
        ("b/Data_Entry_2017.csv", "nih"),
        ("c/images/CHNCXR_0001_0.png", "nlm_tb"),
        ("d/train-00000-of-00001.parquet", "huggingface"),
        ("e/dataset_dict.json", "huggingface"),
        ("f/t.csv", "folder"),
    ):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"")
        assert guess_source(tmp_path / name[0]) == source
    assert check_source(tmp_path / "b").problems[0].startswith("Data_Entry_2017.csv is empty")
    assert check_source(tmp_path / "c", "nih").problems[0].endswith("the NIH images and Data_Entry_2017_v2020.csv.")


def test_rows_that_cannot_be_used_fill_no_split(tmp_path):
    split = ["train"] * 6 + ["val"] * 2 + ["test"] * 4
    folder = make_folder(tmp_path, MAPPING.replace("}", ", split: Set}"), Set=split)
    for name in NAMES[8:]:
        (folder / name).write_bytes(b"")
    assert check(folder).problems[0].startswith("no image is in the split test")
    make_table(Report=["FINDINGS: ___"] * 12, Set=split).to_csv(folder / "t.csv", index=False)
    assert check(folder).problems == (
        "no row has an image file that can be read and a report that says something, or none: mend them.",
    )


def test_lines_of_official_tables_are_told_too(tmp_path):
    rows = [
        f"{number:08d}_000.png,{'Mass' if number % 2 else 'No Finding'},0,{number},40,M,PA" for number in range(1, 41)
    ]
    folder = make_nih_folder(tmp_path, rows)
    next(folder.rglob("00000001_000.png")).unlink()
    found = check_source(folder)
    assert found.problems == ()
    assert found.remarks[0] == "1 rows name an image that the folder does not hold: they are left out."


def test_a_cell_that_says_nothing_is_no_part_of_a_report(tmp_path):
    mapping = MAPPING.replace("report: Report", "report: [First, Impression]")
    first, impression = ["nan", "Clear lungs."] * 6, ["Normal.", "N/A"] * 6
    cohort = check_source(make_folder(tmp_path, mapping, First=first, Impression=impression)).cohort
    assert list(cohort.report[:2]) == ["IMPRESSION: Normal.", "Clear lungs."]


def test_a_patient_of_most_images_is_told(tmp_path):
    found = check(make_folder(tmp_path, Patient=["P0", "P0", "P1", "P1", "P2", *["X9"] * 7]))
    assert found.remarks[0].startswith("7 of 12 images are of one patient, that of line 7: if this identifier stands")
