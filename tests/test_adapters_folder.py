import numpy as np
import pandas as pd
import pytest
from PIL import Image

from chexstudy.cohort.adapters import build_source
from chexstudy.cohort.adapters.folder import check_folder
from chexstudy.cohort.pixels.store import build_pixel_store
from chexstudy.errors import StudyError
from chexstudy.runs import Run

COLUMNS = {"image_path": "File", "patient_id": "Patient", "report": "Report", "findings": ["Mass", "Nodule"]}


def make_table(count=6):
    return pd.DataFrame(
        {
            "File": [f"{number}.png" for number in range(count)],
            "Patient": [f"p{number // 2}" for number in range(count)],
            "Report": [f"Report {number}." for number in range(count)],
            "Mass": [1, 0, -1, None, 0, 1][:count],
            "Nodule": ["yes", "no", "Uncertain", "", "0", "1.0"][:count],
        }
    )


def make_folder(folder, table=None, name="labels.csv"):
    table = make_table() if table is None else table
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 40), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    table.to_csv(folder / name, index=False) if name.endswith("csv") else table.to_parquet(folder / name)
    return folder


def build(folder, **changes):
    options = {"columns": COLUMNS, **changes}
    return build_source("folder", folder, 0, **options)


def sentence(folder, **changes):
    with pytest.raises(StudyError) as caught:
        build(folder, **changes)
    return str(caught.value)


def test_a_folder_and_a_table_become_a_cohort(tmp_path):
    cohort = build(make_folder(tmp_path), source="ours")
    assert list(cohort["image_id"]) == [f"ours/{number}.png" for number in range(6)]
    assert list(cohort["patient_id"]) == ["ours/p0", "ours/p0", "ours/p1", "ours/p1", "ours/p2", "ours/p2"]
    assert list(cohort["report"]) == [f"Report {number}." for number in range(6)]
    assert list(cohort["Mass"].fillna(9)) == [1, 0, -1, 9, 0, 1]
    assert list(cohort["Nodule"].fillna(9)) == [1, 0, -1, 9, 0, 1]
    assert set(cohort["view"]) == set(cohort["sex"]) == {"unknown"}
    assert cohort["age_years"].isna().all()
    assert cohort.groupby("patient_id")["split"].nunique().max() == 1


def test_parquet_and_csv_give_the_same_cohort(tmp_path):
    from_csv = build(make_folder(tmp_path / "a"))
    from_parquet = build(make_folder(tmp_path / "b", name="labels.parquet"))
    pd.testing.assert_frame_equal(from_csv.drop(columns="image_path"), from_parquet.drop(columns="image_path"))


def test_the_mapping_can_lie_in_the_folder(tmp_path):
    table = make_table().assign(
        View=["frontal", "LL", "", "AP", "pa", "PA"], Age=["58", "058Y", "", "6 months", "7", "8"]
    )
    table["Nodule"] = ["no", "yes", "2", "no", "yes", ""]
    folder = make_folder(tmp_path, table)
    (folder / "images").mkdir()
    for path in folder.glob("*.png"):
        path.rename(folder / "images" / path.name)
    (folder / "cohort.yaml").write_text(
        "images: images\nsource: ours\ncolumns:\n  image_path: File\n  patient_id: none\n  view: View\n"
        "  age_years: Age\n  findings: {Lung Nodule: Nodule}\n"
        "values:\n  view: {frontal: PA}\n  labels: {2: -1, no: null}\n"
    )
    cohort = build_source("folder", folder, seed=0)
    assert list(cohort["view"]) == ["PA", "lateral", "unknown", "AP", "PA", "PA"]
    assert list(cohort["age_years"].fillna(-1)) == [58, 58, -1, 0.5, 7, 8]
    assert list(cohort["Lung Nodule"].fillna(9)) == [9, 1, -1, 9, 1, 9]
    assert cohort["patient_id"].is_unique
    assert list(cohort["report_origin"]) == ["none", "template", "template", "none", "template", "none"]
    assert "lung nodule" in cohort["report"][1].lower()


def test_report_columns_named_like_sections_become_sections(tmp_path):
    table = make_table().assign(Findings="Clear lungs.", Impression="Normal.")
    cohort = build(make_folder(tmp_path, table), columns={**COLUMNS, "report": ["Findings", "Impression"]})
    assert cohort["report"][0] == "FINDINGS: Clear lungs.\nIMPRESSION: Normal."


def test_the_tables_own_split_is_kept_and_validation_carved_out_of_its_training(tmp_path):
    table = make_table().assign(Set=["Training", "train", "train", "TRAIN", "test", "test"])
    cohort = build(make_folder(tmp_path, table), columns={**COLUMNS, "split": "Set"})
    assert list(cohort["split"][4:]) == ["test", "test"]
    assert set(cohort["split"][:4]) <= {"train", "validate"}
    table["Set"] = ["train", "train", "val", "val", "test", "test"]
    cohort = build(make_folder(tmp_path, table), columns={**COLUMNS, "split": "Set"})
    assert list(cohort["split"]) == ["train", "train", "validate", "validate", "test", "test"]


def test_nothing_is_dropped_without_being_counted(tmp_path, home):
    table = make_table()
    table.loc[2, "File"] = "absent.png"
    table.loc[3, "Report"] = "FINDINGS: ___"
    folder = make_folder(tmp_path / "mine", table)
    report = check_folder(folder, columns=COLUMNS)
    assert report.problems == ()
    assert len(report.places) == 6
    assert report.without_image == (2,)
    assert report.without_row == (folder / "2.png",)
    cohort = build(folder)
    assert len(cohort) == 6
    assert cohort.attrs["images_without_row"] == 1
    build_pixel_store(Run("mine"), cohort, 32)
    quarantine = pd.read_parquet(Run("mine").path("quarantine.parquet"))
    assert quarantine[["image_id", "reason"]].to_numpy().tolist() == [
        ["folder/absent.png", "missing"],
        ["folder/3.png", "empty report"],
    ]


def test_a_missing_folder_and_a_missing_column_are_one_sentence(tmp_path):
    assert sentence(tmp_path / "absent") == (
        f"there is no folder {tmp_path / 'absent'}: set data_root to the folder that holds the images and their table."
    )
    assert sentence(make_folder(tmp_path, make_table().drop(columns="Mass"))) == (
        "labels.csv has no column 'Mass' for the finding 'Mass'; it has 'File', 'Patient', 'Report', 'Nodule'."
    )


def test_patients_must_be_named_or_explicitly_not(tmp_path):
    folder = make_folder(tmp_path)
    without = {name: column for name, column in COLUMNS.items() if name != "patient_id"}
    assert sentence(folder, columns=without) == (
        "the mapping does not say which column of labels.csv holds patient_id; "
        "it has 'File', 'Patient', 'Report', 'Mass', 'Nodule'; if every image is of another patient, say "
        "'patient_id: none' (images of one patient in two splits would make results too good)."
    )
    assert build(folder, columns={**without, "patient_id": "none"})["patient_id"].is_unique


def test_a_file_named_twice_however_it_is_written_is_one_sentence(tmp_path):
    for name, told in (("1.png", "hold the same"), ("x/../1.png", "name the same file, written in two ways,")):
        table = make_table()
        table.loc[4, "File"] = name
        assert sentence(make_folder(tmp_path, table)) == (
            f"labels.csv: line 3 and line 6 {told} in column 'File' (1 images repeat): give each image one row."
        )


def test_a_patient_in_two_splits_is_one_sentence(tmp_path):
    table = make_table().assign(Set=["train", "test", "train", "train", "validate", "validate"])
    assert sentence(make_folder(tmp_path, table), columns={**COLUMNS, "split": "Set"}) == (
        "labels.csv: line 2 (train) and line 3 (test) are of one patient; "
        "1 patient(s) lie in more than one split: give all images of a patient the same split."
    )


def test_outcomes_are_taken_by_their_names(tmp_path):
    table = make_table().assign(outcome_death=[1, 0, 0, None, 1, 0], outcome_death_years=[0.5, 2, 3, None, 4, 5.25])
    cohort = build(make_folder(tmp_path, table))
    assert list(cohort.columns[-4:]) == ["Mass", "Nodule", "outcome_death", "outcome_death_years"]
    assert list(cohort["outcome_death"].fillna(9)) == [1, 0, 0, 9, 1, 0]
    assert list(cohort["outcome_death_years"].fillna(9)) == [0.5, 2, 3, 9, 4, 5.25]


def test_outcomes_are_mapped_and_their_words_translated(tmp_path):
    table = make_table().assign(
        Died=["yes", "alive", "Dead", "", "0", "lost"], Followed=["1", " 2 ", "3", "", "5", "6"], Wrong="1"
    )
    outcomes = {"death": "Died", "death_years": "Followed", "malposition": "Wrong"}
    columns, values = {**COLUMNS, "outcomes": outcomes}, {"outcomes": {"lost": 0}}
    cohort = build(make_folder(tmp_path, table), columns=columns, values=values)
    assert list(cohort["outcome_death"].fillna(9)) == [1, 0, 1, 9, 0, 0]
    assert list(cohort["outcome_death_years"].fillna(9)) == [1, 2, 3, 9, 5, 6]
    assert list(cohort["outcome_malposition"]) == [1] * 6


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"Died": "perhaps"}, "labels.csv: line 2, column 'outcome_death' holds 'perhaps'; an outcome is"),
        ({"Followed": "-2"}, "labels.csv: line 2, column 'outcome_death_years' holds '-2'; a time is a"),
        ({"Followed": ""}, "labels.csv: line 2, column 'outcome_death_years' is empty; a time is a"),
    ],
)
def test_impossible_outcomes_are_one_sentence(tmp_path, changes, expected):
    table = make_table().assign(**{"Died": "yes", "Followed": "2.5", **changes})
    columns = {**COLUMNS, "outcomes": {"death": "Died", "death_years": "Followed"}}
    assert sentence(make_folder(tmp_path, table), columns=columns).startswith(expected)


@pytest.mark.parametrize("label", ["2", "maybe", "0.5"])
def test_a_label_outside_the_contract_is_one_sentence(tmp_path, label):
    assert sentence(make_folder(tmp_path, make_table().assign(Mass=["1", "0", "", label, "1", "1"]))) == (
        f"labels.csv: line 5, column 'Mass' holds {label!r}; a label is 1 (present), 0 (absent), "
        "-1 (uncertain) or empty (not stated), or an entry under 'values: labels' that says what it means."
    )


def test_words_that_mean_nothing_are_one_sentence(tmp_path):
    table = make_table().assign(View="oblique", Sex="F", Set="holdout", Age="old")
    folder = make_folder(tmp_path, table)
    assert sentence(folder, columns={**COLUMNS, "view": "View"}) == (
        "labels.csv: line 2, column 'View' holds 'oblique'; expected one of AP, PA, lateral, unknown, "
        "or an entry under 'values: view' that says what it means."
    )
    assert "column 'Set' holds 'holdout'; expected one of test, test_enriched, train, validate" in sentence(
        folder, columns={**COLUMNS, "split": "Set"}
    )
    assert sentence(folder, columns={**COLUMNS, "age_years": "Age"}) == (
        "labels.csv: line 2, column 'Age' holds 'old'; expected an age from 0 to 120 years, or empty."
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"columns": {**COLUMNS, "reprot": "x"}}, "the mapping has no column 'reprot': it can have image_path, pat"),
        ({"values": {"colour": {}}}, "the mapping cannot translate values of 'colour'"),
        ({"values": {"view": "PA"}}, "the mapping's entry 'view' must be pairs of 'name: value'."),
        ({"fractions": {"train": 0.5}}, "the shares of the splits must be 0 or more and add up to 1, not train 0.5."),
        ({"table": "other.csv"}, "there is no table"),
        ({"images": "png"}, "none of the 6 files named in column 'File' of labels.csv exists in "),
        ({"columns": {**COLUMNS, "findings": {"view": "Mass"}}}, "a finding cannot be named 'view'"),
        ({"columns": {**COLUMNS, "findings": {"outcome_x": "Mass"}}}, "a finding cannot be named 'outcome_x', because"),
        ({"columns": {**COLUMNS, "outcomes": ["Dead"]}}, "labels.csv has no column 'Dead' for the outcome 'Dead'; it"),
        ({"columns": None}, "no columns were given and "),
    ],
)
def test_a_wrong_mapping_is_one_sentence(tmp_path, changes, expected):
    assert sentence(make_folder(tmp_path), **changes).startswith(expected)


def test_a_table_that_is_none_or_ambiguous_is_one_sentence(tmp_path):
    folder = make_folder(tmp_path)
    (folder / "more.csv").write_bytes(b"\xff\xfe\x00binary")
    assert sentence(folder).endswith("or 'table' must name it (found: labels.csv, more.csv).")
    assert "is not UTF-8 text: save it again" in sentence(folder, table="more.csv")
    (folder / "more.csv").write_text("File,Patient,Report,Mass,Nodule\n")
    assert sentence(folder, table="more.csv") == "more.csv has no rows."


def test_a_dry_run_names_every_problem_at_once(tmp_path):
    table = make_table().astype({"Mass": object}).assign(View="oblique")
    table.loc[1, "Mass"] = "7"
    table.loc[2, "Patient"] = None
    table.loc[5, "File"] = "0.png"
    report = check_folder(make_folder(tmp_path, table), columns={**COLUMNS, "view": "View"})
    assert report.cohort is None
    columns_at_fault = [problem.split("column ")[1].split("'")[1] for problem in report.problems]
    assert columns_at_fault == ["File", "Patient", "View", "Mass"]
