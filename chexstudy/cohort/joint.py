"""Many sources in one cohort, as a manifest lists them: no patient on two sides, no image twice, every overlap said.

The manifest is a YAML file::

    root: ~/radiographs               # where the folders are; its own folder if not said
    sources:                          # in the order of the cohort's rows
      - source: mimic_cxr             # one of `chexstudy cohort sources`, once each
        folder: mimic-cxr-jpg-2.1.0   # the source's name if not said
        role: pretrain                # pretrain, evaluate, both (the default) or annotate
        views: [PA, AP]               # others are left out, as are those of the filters below
        ages: [18, 120]               # years; who is of unknown age stays
        languages: [en]               # of written reports, as they are or as they were translated
        options: {labels: chexpert}   # those of the source
        translations: english.csv     # id (of image, study or report) and text; starts at root too

A source of the role ``pretrain`` gives its training and validation images, all its images if it has no official split;
``evaluate`` gives its test images, those of validation if it has no test, all if it has no official split; ``both``
gives what it has, split as it says or at random; ``annotate`` gives masks and boxes of the other sources' images alone.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from chexstudy.cohort.adapters import DATASETS, list_annotations, read_source, require_source
from chexstudy.cohort.adapters.column_mapping import refuse_unknown
from chexstudy.cohort.adapters.layout import drop_ending, resolve_links
from chexstudy.cohort.adapters.manifest import NOT_ENGLISH, SPLIT_AT_RANDOM, UNUSED, VALIDATE_SHARE, ManifestReport
from chexstudy.cohort.overlaps import exclude_overlap
from chexstudy.cohort.report_tables import read_translations, replace_reports
from chexstudy.cohort.splits import TEST_SPLITS, carve_validation
from chexstudy.cohort.table import SPLITS, VIEWS, validate_cohort
from chexstudy.errors import StudyError
from chexstudy.inputs.yaml_files import read_yaml
from chexstudy.paths import resolve_user_path

JOINT = "joint"
OVERLAP = "overlap"  # in ``cohort.attrs``: what sources share and what was done about it
ROLES = ("both", "pretrain", "evaluate", "annotate")


@dataclass(frozen=True)
class JoinedSource:
    """An entry of the manifest."""

    source: str
    folder: str = ""
    role: str = "both"
    views: tuple[str, ...] = VIEWS
    ages: tuple[float, float] = (0, 120)
    languages: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    translations: str = ""


def read_manifest(path: str | Path) -> list[JoinedSource]:
    """The entries of a manifest, their folders absolute."""
    path = resolve_user_path(path)
    told = read_yaml(path, "the manifest")
    if not isinstance(told, dict) or not isinstance(told.get("sources"), list) or not told["sources"]:
        raise StudyError(f"the manifest {path} needs an entry 'sources' with a list of sources, each `- source: NAME`.")
    refuse_unknown(told, ("root", "sources"), f"the manifest {path}")
    entries = [_read_entry(entry, path) for entry in told["sources"]]
    counts = Counter((one.source, one.folder) for one in entries)
    twice = [source for (source, _), count in counts.items() if count > 1]
    if twice:
        raise StudyError(f"the manifest {path} lists the source {twice[0]} twice: keep one entry of it.")
    root = path.parent / Path(str(told.get("root") or "")).expanduser()
    return [
        replace(
            one,
            folder=str(root / Path(one.folder or one.source).expanduser()),
            translations=one.translations and str(root / Path(one.translations).expanduser()),
        )
        for one in entries
    ]


_RULES = {
    "role": (lambda role: role in ROLES, f"of {', '.join(ROLES)}"),
    "views": (
        lambda views: views and isinstance(views, list) and not set(views) - set(VIEWS),
        f"of {', '.join(VIEWS)}",
    ),
    "ages": (
        lambda ages: isinstance(ages, list) and [isinstance(age, int | float) for age in ages] == [True, True],
        "two numbers, as in [18, 120]",
    ),
    "languages": (lambda languages: isinstance(languages, list), "a list, as in [en]"),
    "options": (lambda options: isinstance(options, dict), "`name: value` lines"),
}


def _read_entry(entry: object, path: Path) -> JoinedSource:
    if not isinstance(entry, dict) or "source" not in entry:
        raise StudyError(f"the manifest {path}: every entry of 'sources' must say `source: NAME`.")
    refuse_unknown(entry, JoinedSource.__dataclass_fields__, f"an entry of the manifest {path}")
    require_source(str(entry["source"]))
    for name, (is_right, told) in _RULES.items():
        if name in entry and not is_right(entry[name]):
            raise StudyError(f"the manifest {path}: {name} of {entry['source']} must be {told}, not {entry[name]!r}.")
    if "languages" in entry and entry["source"] not in DATASETS:
        raise StudyError(f"the manifest {path}: {entry['source']} is no public data set and can have no languages.")
    return JoinedSource(**{name: tuple(value) if isinstance(value, list) else value for name, value in entry.items()})


def read_joint(path: str | Path, seed: int, unpack_to: str | Path) -> ManifestReport:
    """The cohort of a manifest, or what is wrong with each of its sources; nothing but a wrong manifest is raised.

    Images of a patient, and images, that two sources share stay on the side nearest to the test, those that one side
    has twice with the source listed first. Notes on all of it are in ``cohort.attrs``.
    """
    tables, problems, unlisted, notes = [], [], [], {}
    for entry in read_manifest(path):
        if entry.role == "annotate":
            continue
        found = read_source(entry.source, entry.folder, seed, Path(unpack_to, entry.source), **entry.options)
        problems += [f"{entry.source}: {problem}" for problem in found.problems]
        unlisted += found.without_row
        if found.cohort is None:
            continue
        table = _translate(found, entry)
        notes |= {f"{entry.source}: {name}": note for name, note in table.attrs.items() if name != UNUSED and note}
        kept = _take_role(table, entry, seed)
        is_age_outside = kept.age_years.lt(entry.ages[0]) | kept.age_years.gt(entry.ages[1])
        kept = kept[kept.view.isin(entry.views) & ~is_age_outside]
        if len(kept) < len(table):
            notes[f"{entry.source}: images left out by role and filters"] = len(table) - len(kept)
        tables.append(kept)
    sources = [name for table in tables for name in table.source.unique()]
    if len(sources) > len(set(sources)):
        problems.append(f"two folders of the manifest {path} call their source alike: give each a `source` of its own.")
    if problems or not tables:
        nothing = [] if problems else [f"the manifest {path} has no source that gives images: give one another role."]
        return ManifestReport((*problems, *nothing))
    cohort = pd.concat(tables, ignore_index=True)
    cohort, told = exclude_overlap(cohort)
    cohort, shared = _keep_once(cohort)
    cohort = validate_cohort(cohort.reset_index(drop=True), "the joint cohort")
    cohort.attrs = {**notes, OVERLAP: told, **({"images of two sources kept once": shared} if shared else {})}
    return ManifestReport((), cohort.index, (), tuple(unlisted), cohort)


def list_joint_annotations(path: str | Path, image_ids: set[str]) -> list:
    """Where organs and findings are, by all sources of a manifest."""
    listed = []
    for entry in read_manifest(path):
        found = list_annotations(entry.source, Path(entry.folder), image_ids)
        if entry.role == "annotate" and not found:
            raise StudyError(
                f"no mask or box of {entry.source} is of an image of this cohort: list the source of its images too."
            )
        listed += found
    return listed


def _take_role(table: pd.DataFrame, entry: JoinedSource, seed: int) -> pd.DataFrame:
    is_random, is_test = table.attrs.get(SPLIT_AT_RANDOM, 0) > 0, table.split.isin(TEST_SPLITS)
    if entry.role == "pretrain":
        return carve_validation(table.assign(split="train"), VALIDATE_SHARE, seed) if is_random else table[~is_test]
    if entry.role == "evaluate":
        judged = table if is_random else table[is_test if is_test.any() else table.split == "validate"]
        return judged.assign(split=judged.split.where(judged.split.isin(TEST_SPLITS), "test"))
    return table


def _translate(found: ManifestReport, entry: JoinedSource) -> pd.DataFrame:
    """The cohort of a source with its reports translated, without those that are still in no asked-for language."""
    table = found.cohort
    official = table.report
    if entry.translations:
        table = replace_reports(table, read_translations(entry.translations), found.report_ids)
    is_official = table.report.eq(official) & table.report_origin.eq("written")
    if entry.languages and DATASETS[entry.source].language not in entry.languages:
        table, is_official = table[~is_official], is_official[~is_official]
    if NOT_ENGLISH in table.attrs:
        table.attrs[NOT_ENGLISH] = int(is_official.sum())
    return table


def _keep_once(cohort: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Each image once, where it is nearest to the test, else of the source listed first; and how many were left out.

    Two sources hold an image both if they name one file, or if they call it alike and number its patient alike.
    """
    cohort = cohort.loc[cohort.split.map(SPLITS.index).sort_values(ascending=False, kind="stable").index]
    names = cohort.patient_id + "/" + cohort.image_id.str.partition("/")[2].map(drop_ending)
    is_others = cohort.source != cohort.source.groupby(names).transform("first")
    again = cohort.image_path.map(resolve_links).duplicated() | is_others
    return cohort[~again].sort_index(), int(again.sum())
