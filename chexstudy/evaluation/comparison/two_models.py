"""Two models on the same patients: every finding, the macro mean and the tiers, with intervals and p values.

The question is always whether the first ranks better than the second, so all is paired: both are measured on the same
images, in the same resamples of patients, and seed k of one against seed k of the other. Tests are corrected over
findings; the macro mean is one question, asked once, and is not.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

from chexstudy.cohort.prevalence import TIERS
from chexstudy.cohort.table import finding_columns, show_value
from chexstudy.errors import StudyError
from chexstudy.evaluation.scores import METRICS, append_groups, group_findings, join_seeds, measure_findings
from chexstudy.inputs.identifiers import normalise_ids, show_id, unify_patients
from chexstudy.inputs.tables import name_place
from chexstudy.progress import progress
from chexstudy.statistics.bootstrap import LEAST_PATIENTS, bootstrap_patients, difference_p_values
from chexstudy.statistics.delong import contrast_p_value, correlate_areas
from chexstudy.statistics.multiple_testing import correct_by_holm
from chexstudy.statistics.permutation import PERMUTATIONS, exchange_models
from chexstudy.statistics.ranking import auroc, average_precision, known_labels

RESAMPLES = 2000
COLUMNS = (
    *("finding", "n", "positives", "patients", "first", "first_low", "first_high"),
    *("second", "second_low", "second_high", "difference", "ci_low", "ci_high"),
    *("p_delong", "p_bootstrap", "p_permutation", "p", "p_holm", "reason"),
)
_MEASURES = dict(zip(METRICS, (auroc, average_precision), strict=True))
TOO_FEW = f"fewer than {LEAST_PATIENTS} patients of a class"


@dataclass(frozen=True)
class ModelScores:
    """What one model scored."""

    name: str  # what to call it
    # one table a training seed: ``image_id`` and one column a finding, higher means more likely present
    tables: tuple[pd.DataFrame, ...]
    seeds: tuple[int, ...] = ()  # the seeds in the order of the tables; empty where they are not known


@dataclass(frozen=True)
class Comparison:
    """Two models compared."""

    # One row a finding, then the macro mean and the tiers (`COLUMNS`): values of both models and their difference,
    # first minus second, each with its 95 % interval; n, positives and patients with a known label, for a group all
    # images (positives -1) and all patients; the p value of each test, the one that was chosen, ``p``, and it corrected
    # by Holm over findings. What cannot be had is NaN, with the reason.
    table: pd.DataFrame
    names: tuple[str, str]  # of the first and the second model
    metric: str  # ``auroc`` or ``auprc``
    test: str  # what ``p`` of a finding is of: ``delong``, ``bootstrap`` or ``permutation``
    seeds: int  # seeds a side
    images: int  # how many images both were compared on
    patients: int  # theirs
    left_out: int  # images that only one model scored
    resamples: int  # of patients
    permutations: int  # of the permutation test; 0 if it was not made
    splits: tuple[str, ...] = ()  # of these images, where the labels name them

    @property
    def of_findings(self) -> pd.DataFrame:
        """The rows of findings, without macro mean and tiers."""
        return self.table[~self.table.finding.isin(["macro", *TIERS])]


def compare_score_tables(
    first: ModelScores,
    second: ModelScores,
    labels: pd.DataFrame,
    *,
    metric: str = "auroc",
    tiers: Mapping[str, str] | None = None,
    test: str = "auto",
    resamples: int = RESAMPLES,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
    shared_only: bool = False,
) -> Comparison:
    """Compare two models on the same patients.

    Intervals draw patients, and seeds where there are several (`chexstudy.statistics.bootstrap`). DeLong's p value is
    that for patients with several images wherever one has; it and the permutation test take seeds as they are.

    Args:
        first, second: the models; seed k is compared with seed k.
        labels: ``image_id``, ``patient_id`` and one column a finding, 1, 0, -1 or empty; it may hold further images.
        test: the test whose p value is corrected: ``delong``, ``bootstrap``, ``permutation`` (which is made only if it
            is asked for), or ``auto``, which is DeLong's for AUROC with one seed and the bootstrap's otherwise. Macro
            mean and tiers take the bootstrap's where DeLong's is chosen.
        shared_only: compare on the images that both scored, if they differ.
    """
    _check_request(first, second, metric, test, resamples)
    tables, left_out = _pair_images(first, second, shared_only)
    image_ids = tables[0][0].index
    labels = _match_labels(labels, image_ids)
    patient_ids = labels.patient_id.to_numpy()
    patients = len(np.unique(patient_ids))
    if patients < LEAST_PATIENTS:
        raise StudyError(
            f"the {len(image_ids)} images compared are of {patients} patient{'s' * (patients > 1)}, and an interval "
            f"needs at least {LEAST_PATIENTS}: score more patients."
        )
    listed, reasons = _list_findings(first, second, tables, labels)
    evaluable = [finding for finding in listed if finding not in reasons]
    if not evaluable:
        told = "; ".join(f"{finding}: {reason}" for finding, reason in list(reasons.items())[:3])
        raise StudyError(f"no finding can be compared ({told}): check the scores' columns and the labels.")
    known = read_labels(labels, evaluable)
    sides = [[table[evaluable].to_numpy(dtype=float) for table in side] for side in tables]
    automatic = "delong" if metric == "auroc" and len(sides[0]) == 1 else "bootstrap"
    chosen = automatic if test == "auto" else test
    made = permutations if chosen == "permutation" else 0
    rows = _measure(sides, known, evaluable, patient_ids, metric, tiers, chosen, resamples, made, seed)
    unmeasured = [_describe_unmeasured(finding, labels, reasons[finding]) for finding in listed if finding in reasons]
    rows = pd.concat([rows, pd.DataFrame(unmeasured)], ignore_index=True) if unmeasured else rows
    order = [*listed, *[name for name in rows.finding if name not in listed]]
    rows = rows.set_index("finding").loc[order].reset_index()
    is_finding = rows.finding.isin(listed).to_numpy()
    rows["p_holm"] = np.nan
    rows.loc[is_finding, "p_holm"] = correct_by_holm(rows.p[is_finding].to_numpy())
    return Comparison(
        rows[list(COLUMNS)],
        (first.name, second.name),
        metric,
        chosen,
        len(sides[0]),
        len(image_ids),
        patients,
        left_out,
        resamples,
        made,
        tuple(sorted(set(labels.split))) if "split" in labels else (),
    )


def _check_request(first: ModelScores, second: ModelScores, metric: str, test: str, resamples: int) -> None:
    if test == "delong" and metric != "auroc":
        raise StudyError("DeLong's test is one of AUROCs: take bootstrap or permutation for average precision.")
    if resamples < 100:
        raise StudyError(f"an interval needs at least 100 resamples, not {resamples}.")
    others = first.seeds and second.seeds and first.seeds != second.seeds
    if len(first.tables) == 0 or len(first.tables) != len(second.tables) or others:
        told = [
            f"seed{'s' * (len(side.seeds) > 1)} {', '.join(map(str, side.seeds))}"
            if side.seeds
            else f"{len(side.tables)} score file{'s' * (len(side.tables) != 1)}"
            for side in (first, second)
        ]
        raise StudyError(
            f"seeds do not pair: {first.name} has {told[0]} and {second.name} {told[1]}; "
            "evaluate those that are missing, or name the score files of the seeds that both have."
        )


def _pair_images(first, second, shared_only) -> tuple[list[list[pd.DataFrame]], int]:
    """Both sides' tables with the same images in the same order as index, and how many images were left out."""
    sides = [[_index_images(side.name, table) for table in side.tables] for side in (first, second)]
    every = [table.index for side in sides for table in side]
    shared = every[0]
    for index in every[1:]:
        shared = shared[shared.isin(index)]
    union = len(set().union(*every))
    if not len(shared):
        examples = " and ".join(show_id(index) for index in (every[0], every[-1]))
        raise StudyError(
            f"{first.name} and {second.name} share no image (their ids are written as {examples}): score the same "
            "images with both, and write their ids the same way."
        )
    if len(shared) < union and not shared_only:
        raise StudyError(
            f"{first.name} and {second.name} were not scored on the same images ({len(every[0])} and {len(every[-1])}, "
            f"{len(shared)} of them shared by all): score the same ones, or compare these with --shared-only."
        )
    return [[table.loc[shared] for table in side] for side in sides], union - len(shared)


def _index_images(name: str, table: pd.DataFrame) -> pd.DataFrame:
    if "image_id" not in table:
        raise StudyError(f"the scores of {name} have no column image_id: their columns are {_list(table.columns)}.")
    return table.set_index(check_ids(table.image_id, f"the scores of {name}")).drop(columns="image_id")


def check_ids(own_ids: pd.Series, what: str, of: str = "image") -> pd.Series:
    """The ids in one spelling, after a look that each is there and comes once."""
    ids = normalise_ids(own_ids)
    a = "an" if of == "image" else "a"
    for wrong, problem in ((ids.isna(), f"have no {of}_id in"), (ids.duplicated(), f"hold {a} {of} a second time in")):
        if wrong.any():
            place = name_place(own_ids.index, int(wrong.to_numpy().argmax()))
            raise StudyError(f"{what} {problem} {place} ({int(wrong.sum())} rows): give every {of} one row.")
    return ids


def _match_labels(labels: pd.DataFrame, image_ids: pd.Index) -> pd.DataFrame:
    missing = [name for name in ("image_id", "patient_id") if name not in labels]
    if missing:
        raise StudyError(f"the labels have no column {missing[0]}: their columns are {_list(labels.columns)}.")
    indexed = labels.assign(patient_id=normalise_ids(labels.patient_id), place=range(len(labels)))
    indexed = indexed.set_index(check_ids(labels.image_id, "the labels"))
    absent = image_ids[~image_ids.isin(indexed.index)]
    if len(absent):
        raise StudyError(
            f"{len(absent)} of the {len(image_ids)} images scored are not in the labels, whose ids are written as "
            f"{show_id(indexed.index)} and those of the scores as {show_id(absent)}: the scores are of another cohort, "
            "so pass the labels of that one."
        )
    indexed = indexed.loc[image_ids]
    unnamed = indexed.place[indexed.patient_id.isna()]
    if len(unnamed):
        place = name_place(labels.index, int(unnamed.iloc[0]))
        raise StudyError(f"the labels have no patient_id in {place} ({len(unnamed)} rows): name the patient.")
    return indexed.drop(columns="place").assign(patient_id=unify_patients(indexed.patient_id)[0])


def _list(names) -> str:
    shown = [str(name) for name in names]
    return ", ".join(shown[:8]) + (", ..." if len(shown) > 8 else "")


def _list_findings(first, second, tables, labels) -> tuple[list[str], dict[str, str]]:
    """Every finding that is labelled or scored, the labels' order first, and why some cannot be compared."""
    of_sides = []
    for side, of_seeds in zip((first, second), tables, strict=True):
        names = finding_columns(of_seeds[0])
        for table in of_seeds:
            for name in (one for one in names if one in table):
                _check_scores(side.name, name, table[name])
        # A finding that one seed did not score cannot be averaged over seeds.
        of_sides.append([n for n in names if all(n in table and table[n].notna().all() for table in of_seeds)])
    scored = [name for side in tables for table in side for name in finding_columns(table)]
    labelled = [name for name in finding_columns(labels) if name in scored or holds_labels(labels[name])]
    listed = list(dict.fromkeys([*labelled, *scored]))
    reasons = {}
    for finding in listed:
        lacking = [side.name for side, names in zip((first, second), of_sides, strict=True) if finding not in names]
        if finding not in labels:
            reasons[finding] = "no labels"
        elif len(lacking) == 2:
            reasons[finding] = "not scored"
        elif lacking:
            reasons[finding] = f"not scored by {lacking[0]}"
        else:
            column = read_labels(labels, [finding])
            known = known_labels(column)
            if not known.any():
                reasons[finding] = "no known label"
            elif not (known & (column == 1)).any():
                reasons[finding] = "no positives"
            elif not (known & (column != 1)).any():
                reasons[finding] = "no negatives"
    return listed, reasons


def _check_scores(name: str, finding: str, column: pd.Series) -> None:
    if not pd.api.types.is_numeric_dtype(column):
        raise StudyError(f"the scores of {name} for {finding!r} are no numbers: write one number an image, or drop it.")
    missing = int(column.isna().sum())
    if 0 < missing < len(column):
        raise StudyError(f"{name} has no score of {finding!r} for {missing} images: score every image or none.")


def holds_labels(column: pd.Series) -> bool:
    """Whether a column that nobody scored is a finding, and not something else about the images."""
    stated = pd.to_numeric(column.dropna(), errors="coerce")
    return len(stated) > 0 and bool(stated.isin([1, 0, -1]).all())


def read_labels(labels: pd.DataFrame, findings: Sequence[str]) -> np.ndarray:
    """Labels ``(rows, findings)`` of a table, after a look that each is 1, 0, -1 or empty."""
    columns = []
    for finding in findings:
        numbers = pd.to_numeric(labels[finding], errors="coerce").astype("Float64")
        wrong = (numbers.isna() & labels[finding].notna()) | ~(numbers.isna() | numbers.isin([1, 0, -1])).astype(bool)
        if wrong.any():
            held = show_value(labels[finding][wrong].iloc[0], labels[finding])
            raise StudyError(f"the label {held} of {finding!r} is none of 1, 0, -1 (uncertain) or empty: translate it.")
        columns.append(numbers.to_numpy(dtype=float, na_value=np.nan))
    return np.stack(columns, axis=1)


def _describe_unmeasured(finding: str, labels: pd.DataFrame, reason: str) -> dict:
    column = read_labels(labels, [finding]) if finding in labels else np.full((len(labels), 1), np.nan)
    known = known_labels(column)[:, 0]
    counts = {"n": int(known.sum()), "positives": int((column[:, 0] == 1).sum())}
    return {"finding": finding, **counts, "patients": labels.patient_id[known].nunique(), "reason": reason}


def _measure(
    sides, labels, findings, patient_ids, metric, tiers, chosen, resamples, permutations, seed
) -> pd.DataFrame:
    measure, groups = _MEASURES[metric], group_findings(findings, tiers)
    generator = np.random.default_rng(seed)
    shared = labels, findings, bootstrap_patients(patient_ids, resamples, generator), tiers, (metric,)
    rounds = progress([one for side in sides for one in side], label="resampling patients")
    # As a metric beside others, which here are none.
    parts = [measure_findings([one], *shared, lambda *cases: [measure(*cases)]) for one in rounds]
    measured = [join_seeds(parts[: len(sides[0])]), join_seeds(parts[len(sides[0]) :])]
    columns, resting_on = {}, measured[0].patients
    for name, side in zip(("first", "second"), measured, strict=True):
        # The same seeds are drawn for each model and for their difference.
        rows = side.over_seeds(deepcopy(generator)).iloc[: len(resting_on)]
        columns |= {name: rows.value, f"{name}_low": rows.ci_low, f"{name}_high": rows.ci_high}
    difference = measured[0].subtract(measured[1], deepcopy(generator))
    ends = {"difference": difference.value, "ci_low": difference.ci_low, "ci_high": difference.ci_high}
    columns |= {name: values[0] for name, values in ends.items()}
    few = resting_on < LEAST_PATIENTS
    p_values = {name: np.full(len(few), np.nan) for name in ("delong", "bootstrap", "permutation")}
    p_values["bootstrap"] = difference_p_values(difference, resting_on)[0]
    if metric == "auroc":
        p_values["delong"][: len(findings)] = _test_by_delong(sides, labels, patient_ids)
    if permutations:
        exchanged = {"permutations": permutations, "measure": measure}
        exchanged["summarise"] = partial(append_groups, groups=groups)
        p_values["permutation"] = exchange_models(labels, *sides, patient_ids, generator, **exchanged)
    # Too few patients for an interval are too few for a p value.
    columns |= {f"p_{name}": np.where(few, np.nan, values) for name, values in p_values.items()}
    columns["p"] = columns[f"p_{chosen}"].copy()
    if chosen == "delong":
        columns["p"][len(findings) :] = columns["p_bootstrap"][len(findings) :]
    patients = [len(np.unique(patient_ids[column])) for column in known_labels(labels).T]
    patients += [len(np.unique(patient_ids))] * len(groups)
    return measured[0].columns.assign(patients=patients, **columns, reason=np.where(few, TOO_FEW, ""))


def _test_by_delong(sides, labels: np.ndarray, patient_ids: np.ndarray) -> list[float]:
    """p values of the mean AUROC over seeds, finding by finding; for clusters where a patient has several images."""
    several = len(np.unique(patient_ids)) < len(patient_ids)
    seeds = len(sides[0])
    contrast = np.repeat([1 / seeds, -1 / seeds], seeds)
    p_values = []
    for finding in range(labels.shape[1]):
        scores = np.column_stack([one[:, finding] for side in sides for one in side])
        areas = correlate_areas(labels[:, finding], scores, patient_ids if several else None)
        p_values.append(contrast_p_value(*areas, contrast))
    return p_values
