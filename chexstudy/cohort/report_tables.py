"""Tables of reports that a user brings in place of a data set's own texts: MIMIC-CXR's sections, translations."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from chexstudy.cohort.reports import says_nothing
from chexstudy.cohort.table import require_columns
from chexstudy.errors import StudyError
from chexstudy.inputs.identifiers import normalise_ids, show_id
from chexstudy.inputs.tables import name_place, read_text_table


def read_sectioned(path: str | Path) -> dict[str, str]:
    """Study (``s50000000``) -> report, from the table that MIT-LCP's scripts for MIMIC-CXR write.

    A report has findings and impression, or else the last paragraph. Source: ``mimic_cxr_sectioned.csv``,
    MIT-LCP/mimic-cxr.
    """
    table = _read_by_id(Path(path), "study", ("findings", "impression", "last_paragraph"))
    return {
        study: "\n".join(f"{name.upper()}: {row[name]}" for name in ("findings", "impression") if row[name])
        or row["last_paragraph"]
        for study, row in table.to_dict("index").items()
    }


def read_translations(path: str | Path) -> dict[str, str]:
    """Id of an image, a study or a report -> English text, empty where there is none; columns ``id`` and ``text``."""
    return _read_by_id(Path(path), "id", ("text",))["text"].to_dict()


def replace_reports(
    cohort: pd.DataFrame, translations: Mapping[str, str], report_ids: pd.Series | None = None
) -> pd.DataFrame:
    """The cohort with the translation of each report in its place, if there is one: of the image, else the study's.

    Ids are the cohort's or the data set's own, without the source in front; ``report_ids`` are those of each row's
    report, for data sets whose reports have some. Numbers in ``attrs`` tell what was and was not replaced.
    """
    texts = {key: text for key, text in translations.items() if text}
    keys = [cohort["image_id"], cohort["study_id"], *([] if report_ids is None else [report_ids])]
    keys = [ids for own in keys for ids in (own, own.str.partition("/")[2])]
    known = translations.keys() & set().union(*keys)
    if not known:
        raise StudyError(
            f"none of the {len(translations)} translations is of this cohort: their ids are written as "
            f"{show_id(translations)}, its images as {show_id(cohort['image_id'])} and its studies as "
            f"{show_id(cohort['study_id'])}: give the ids of its images, studies or reports."
        )
    found = pd.Series(None, cohort.index, dtype="str")
    for ids in keys:
        found = found.fillna(ids.map(texts))
    is_translated = found.notna()
    cohort = cohort.assign(
        report=found.where(is_translated, cohort["report"]),
        report_origin=cohort["report_origin"].where(~is_translated, "written"),
    )
    notes = {
        "reports_translated": int(is_translated.sum()),
        "reports_without_a_translation_that_stay_as_they_are": int(
            (~is_translated & (cohort["report_origin"] == "written")).sum()
        ),
        "translations_of_no_image": len(translations) - len(known),
        "translations_without_a_text": len(translations) - len(texts),
    }
    cohort.attrs |= {name: number for name, number in notes.items() if number}
    return cohort


def _read_by_id(path: Path, key: str, columns: tuple[str, ...]) -> pd.DataFrame:
    """These columns by the id of their row, empty where they say nothing; no id has two different rows."""
    table = read_text_table(path)
    require_columns(table, (key, *columns), path.name)
    places = table.index
    ids = normalise_ids(table[key])
    if ids.isna().any():
        raise StudyError(
            f"{path.name}: {name_place(places, ids.isna().argmax())}, column {key!r} is empty: fill it in."
        )
    told = table[list(columns)].fillna("")
    told = told.where(~told.map(says_nothing), "")
    repeated = ids.duplicated() & ~told.assign(id=ids).duplicated()
    if repeated.any():
        again = repeated.argmax()
        first = (ids == ids.iloc[again]).argmax()
        raise StudyError(
            f"{path.name}: {name_place(places, first)} and {name_place(places, again)} give one {key!r} two texts "
            f"({ids[repeated].nunique()} have several): leave one."
        )
    return told.set_axis(pd.Index(ids, name=key)).loc[lambda rows: ~rows.index.duplicated()]
