import pandas as pd
import pytest

from chexstudy.cohort.report_tables import read_sectioned, read_translations, replace_reports
from chexstudy.cohort.reports import training_text
from chexstudy.errors import StudyError

SECTIONED = (
    "study,impression,findings,last_paragraph,comparison\n"
    's59999901,Cardiomegaly.,"The heart\nis enlarged.",,None.\n'
    "s59999902,No change.,,,\n"
    "s59999903,,nan,There is a small effusion.,\n"
    "s59999904,,,,\n"
)
COHORT = pd.DataFrame(
    {
        "image_id": ["padchest/a.png", "padchest/b.png", "padchest/c.png", "padchest/d.png"],
        "study_id": ["padchest/1", "padchest/1", "padchest/2", "padchest/3"],
        "report": ["derram .", "derram .", "normal .", "no mass."],
        "report_origin": ["written", "written", "written", "template"],
    }
)
REPORT_IDS = pd.Series(["r1", "r1", "r2", None])


def test_sections_of_mimic_are_findings_then_impression_or_the_last_paragraph(tmp_path):
    path = tmp_path / "mimic_cxr_sectioned.csv"
    path.write_text(SECTIONED)
    reports = read_sectioned(path)
    assert {study: training_text(report) for study, report in reports.items()} == {
        "s59999901": "The heart is enlarged. Cardiomegaly.",
        "s59999902": "No change.",
        "s59999903": "There is a small effusion.",
        "s59999904": "",
    }


@pytest.mark.parametrize(
    ("translations", "reports", "notes"),
    [
        # Of the image, else of its study, else of its report, with the source in front or without.
        (
            {"a.png": "Image.", "1": "Study.", "padchest/2": "Other.", "padchest/d.png": "Mass."},
            ["Image.", "Study.", "Other.", "Mass."],
            (4, 0, 0, 0),
        ),
        ({"r1": "Effusion.", "1": ""}, ["Effusion.", "Effusion.", "normal .", "no mass."], (2, 1, 0, 1)),
        ({"r2": "Normal.", "r9": "Gone."}, ["derram .", "derram .", "Normal.", "no mass."], (1, 2, 1, 0)),
    ],
)
def test_translations_replace_reports_by_image_study_or_report(translations, reports, notes):
    replaced = replace_reports(COHORT, translations, REPORT_IDS)
    assert replaced["report"].tolist() == reports
    assert (replaced["report_origin"] == "template").tolist() == [text == "no mass." for text in reports]
    names = ("reports_translated", "reports_without_a_translation_that_stay_as_they_are")
    names += ("translations_of_no_image", "translations_without_a_text")
    assert replaced.attrs == {name: number for name, number in zip(names, notes, strict=True) if number}
    assert COHORT["report"].tolist() == ["derram .", "derram .", "normal .", "no mass."]


@pytest.mark.parametrize("ending", [".csv", ".csv.gz", ".parquet"])
def test_translations_are_read_with_clean_ids_and_empty_texts(tmp_path, ending):
    table = pd.DataFrame({"id": ["017", " b.png ", "c", "b.png"], "text": ["One.", "Two.", "___", "Two."], "x": 1})
    path = tmp_path / f"en{ending}"
    table.to_parquet(path) if ending == ".parquet" else table.to_csv(path, index=False)
    assert read_translations(path) == {"017": "One.", "b.png": "Two.", "c": ""}


@pytest.mark.parametrize(
    ("read", "text", "told"),
    [
        (
            read_sectioned,
            "study,impression\ns1,x\n",
            "^t.csv lacks the columns 'findings', 'last_paragraph'; it has ",
        ),
        (read_sectioned, SECTIONED + "s59999901,Other.,,,\n", "^t.csv: line 2 and line 7 give one 'study' two texts"),
        (read_translations, "ImageID,text\na,b\n", "^t.csv lacks the column 'id'; it has 'ImageID', 'text'.$"),
        (read_translations, "id,text\n,b\n", "^t.csv: line 2, column 'id' is empty: fill it in.$"),
        (
            read_translations,
            "id,text\na,b\nb,c\na,c\n",
            r"line 2 and line 4 give one 'id' two texts \(1 ha",
        ),
        (read_translations, "id;text\na;b\n", "^t.csv has semicolons between its cells"),
    ],
)
def test_a_table_of_another_form_is_one_sentence(tmp_path, read, text, told):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(StudyError, match=told):
        read(tmp_path / "t.csv")


def test_translations_of_another_cohort_are_one_sentence():
    told = r"^none of the 1 translations is of this cohort: their ids are written as 'x9', its images as '…/a\.png'"
    with pytest.raises(StudyError, match=told):
        replace_reports(COHORT, {"x9": "Text."}, REPORT_IDS)
