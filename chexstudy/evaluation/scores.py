"""Per-case scores: kept as artifacts, measured with intervals, compared between arms on the same patients.

One parquet table for each arm, seed, task and data set, ``evaluation/<arm>/seed<k>/<task>/<data_set>.parquet``:
``image_id`` and one column a finding (or, for retrieval, the columns of
`chexstudy.evaluation.image_text.retrieval.rank_pairs`). Numbers in the results table can be made again from these
tables and the cohort, and paired comparisons need them.

Throughout evaluation scores and labels are ``(images, findings)``, labels 1, 0, -1 (uncertain) or NaN, and weights
``(resamples, images)`` of `bootstrap_patients`, the same for all that is compared.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from chexstudy.cohort.prevalence import TIERS
from chexstudy.encoders.spec import name_encoder
from chexstudy.errors import StudyError
from chexstudy.results import OVER_SEEDS
from chexstudy.runs import Run
from chexstudy.statistics.bootstrap import (
    Difference,
    count_patients,
    count_scarcer_patients,
    difference_p_values,
    interval,
    paired_difference,
    resample_seeds,
)
from chexstudy.statistics.ranking import known_labels, macro_mean, rank_metrics
from chexstudy.steps import find_step

METRICS = ("auroc", "auprc")
MACRO = "macro"


def scores_artifact(arm: str, seed: int, task: str, data_set: str) -> str:
    """Name of the artifact that holds the scores: ``evaluation/full/seed0/zero_shot/phantom/test.parquet``."""
    return f"evaluation/{name_encoder(arm)}/seed{seed}/{task}/{data_set}.parquet"


def write_scores(
    run: Run,
    scores: np.ndarray,
    image_ids: Sequence[str],
    findings: Sequence[str],
    *,
    arm: str,
    seed: int,
    task: str,
    data_set: str,
) -> str:
    """Write the scores ``(images, findings)`` of one arm and seed; returns the artifact's name."""
    if scores.shape != (len(image_ids), len(findings)):
        raise StudyError(
            f"scores are {scores.shape} for {len(image_ids)} images and {len(findings)} findings: pass a row an image."
        )
    table = pd.DataFrame(np.asarray(scores), columns=list(findings))
    table.insert(0, "image_id", list(image_ids))
    repeated = table.image_id.duplicated()
    if repeated.any():
        raise StudyError(f"the image of row {int(repeated.argmax())} is scored twice in {data_set}: score each once.")
    name = scores_artifact(arm, seed, task, data_set)
    run.write_table(name, table)
    return name


def read_scores(run: Run, rows: pd.DataFrame, findings: Sequence[str], *, arm: str, seed: int, task: str) -> np.ndarray:
    """Scores ``(rows, findings)`` of rows of the cohort, from one data set or several."""
    parts, order = [np.empty((0, len(findings)))] * rows.empty, []
    for data_set, places in rows.groupby(rows.source + "/" + rows.split).indices.items():
        name, image_ids = scores_artifact(arm, seed, task, data_set), rows.image_id.iloc[places]
        table = run.read_table(name).set_index("image_id")
        images = int((~image_ids.isin(table.index)).sum())
        lacks = [f"{images:,} of the images"] * bool(images)
        lacks += [f"the finding {finding!r}" for finding in findings if finding not in table.columns]
        if lacks:
            raise StudyError(f"{name} lacks {lacks[0]}: run {find_step(name)} again.")
        parts.append(table.loc[image_ids, list(findings)].to_numpy())
        order.extend(places)
    return np.concatenate(parts)[np.argsort(order)]


@dataclass(frozen=True)
class Measured:
    """What a model reaches on a data set, seed by seed, with replicates on resamples of its patients."""

    metrics: tuple[str, ...]
    columns: pd.DataFrame  # what is measured, as in the results table: ``finding, n, positives``, ...
    values: np.ndarray  # ``(seeds, metrics, columns)``
    replicates: np.ndarray  # ``(seeds, resamples, metrics, columns)``
    patients: np.ndarray | None = None  # that each column rests on, as `interval` takes them
    bounds: tuple = (0, 1)  # of the metrics, numbers or ``(metrics, 1)``
    findings: int = 0  # how many of the columns, from the first on, are findings; those with a value are counted
    beside: pd.DataFrame | None = None  # rows that stand beside those of each seed, without an interval

    def of_seed(self, number: int) -> pd.DataFrame:
        """Rows of the results table of one seed, intervals from drawing patients."""
        rows = self._list(self.values[number], *interval(self.replicates[number], patients=self.patients))
        return rows if self.beside is None else pd.concat([rows, self.beside], ignore_index=True)

    def over_seeds(self, generator: np.random.Generator) -> pd.DataFrame:
        """Rows of the mean over seeds, intervals from drawing patients and seeds."""
        ends = interval(resample_seeds(self.replicates, generator), patients=self.patients)
        # Drawing few seeds stretches deviations from the mean, which can carry an end past what the metric can be.
        return self._list(self.values.mean(axis=0), *np.clip(ends, *self.bounds))

    def each_seed(self, seeds: Sequence[int], generator: np.random.Generator) -> pd.DataFrame:
        """Rows of every seed and over all, with the column ``seed``."""
        tables = [self.of_seed(number).assign(seed=seed) for number, seed in enumerate(seeds)]
        return pd.concat([*tables, self.over_seeds(generator).assign(seed=OVER_SEEDS)], ignore_index=True)

    def subtract(self, other: "Measured", generator: np.random.Generator) -> Difference:
        """This model minus another, paired by patient and seed, ``(metrics, columns)``."""
        if len(self.values) != len(other.values):
            raise StudyError(
                "a paired comparison needs the same seeds in both arms, at least one, not "
                f"{len(self.values)} and {len(other.values)}."
            )
        sides = self.values, other.values, self.replicates, other.replicates
        return paired_difference(*sides, generator, self.patients)

    def minus(self, other: "Measured", generator: np.random.Generator, tested: bool = False) -> pd.DataFrame:
        """Rows of `subtract`: ``auroc_difference`` and so on, where tested with ``auroc_difference_p``."""
        difference = self.subtract(other, generator)
        rows = self.list_difference(difference)
        if not tested:
            return rows
        p_values = difference_p_values(difference, self.patients)
        names = [f"{metric}_difference_p" for metric in self.metrics]
        return pd.concat([rows, self._list_rows(names, p_values, *np.full((2, *p_values.shape), np.nan))])

    def list_difference(self, difference: Difference) -> pd.DataFrame:
        """Rows of what `subtract` gave."""
        names = [f"{metric}_difference" for metric in self.metrics]
        return self._list_rows(names, difference.value, difference.ci_low, difference.ci_high)

    def _list(self, value: np.ndarray, low: np.ndarray, high: np.ndarray) -> pd.DataFrame:
        rows = self._list_rows(self.metrics, value, low, high)
        if not self.findings:
            return rows
        evaluable = float(np.sum(~np.isnan(value[0, : self.findings])))
        count = {"finding": MACRO, "metric": "evaluable_findings", "value": evaluable, "n": self.findings}
        return pd.concat([rows, pd.DataFrame([count | {"positives": -1}])], ignore_index=True)

    def _list_rows(self, metrics, value, low, high) -> pd.DataFrame:
        names = [metric for metric in metrics for _ in range(len(self.columns))]
        columns = pd.concat([self.columns] * len(metrics), ignore_index=True)
        return columns.assign(metric=names, value=np.ravel(value), ci_low=np.ravel(low), ci_high=np.ravel(high))


def join_seeds(parts: Sequence[Measured]) -> Measured:
    """One model's seeds, measured apart, as one."""
    arrays = {name: np.concatenate([getattr(one, name) for one in parts]) for name in ("values", "replicates")}
    return replace(parts[0], **arrays)


def measure_findings(
    scores: Sequence[np.ndarray],
    labels: np.ndarray,
    findings: Sequence[str],
    weights: np.ndarray,
    tiers: Mapping[str, str] | None = None,
    metrics: tuple[str, ...] = METRICS,
    measure: Callable = rank_metrics,
) -> Measured:
    """AUROC and average precision (or other metrics) of every finding, of their macro mean and of each tier.

    A finding with one class only keeps its column, with n, positives and value NaN. In a macro or tier column n is the
    number of images. There is no interval for a finding that fewer than five patients have (or lack). Scores are one
    array a seed; findings without a tier are in none. ``measure`` gives the metrics, as one array or each ``(...,
    findings)``, from labels, scores and weights or None.
    """
    groups, labels = group_findings(findings, tiers), np.asarray(labels, dtype=float)
    known = known_labels(labels)
    columns = {
        "finding": [*findings, *groups],
        "n": [*known.sum(axis=0), *[len(labels)] * len(groups)],
        "positives": [*(known & (labels == 1)).sum(axis=0), *[-1] * len(groups)],
    }
    return Measured(
        metrics,
        pd.DataFrame(columns),
        np.stack([append_groups(measure(labels, one, None), groups) for one in scores]),
        np.stack([append_groups(measure(labels, one, weights), groups) for one in scores]),
        _patients(labels, weights, groups),
        findings=len(findings),
    )


def group_findings(findings: Sequence[str], tiers: Mapping[str, str] | None) -> dict[str, list[int]]:
    """The groups that get a row of their own, each with the positions of its findings: all of them, then the tiers."""
    groups = {MACRO: list(range(len(findings)))}
    if tiers is not None:
        wrong = [tier for tier in dict(tiers).values() if tier not in TIERS]
        if wrong:
            raise StudyError(f"a finding's tier is one of {', '.join(TIERS)}, not {wrong[0]!r}.")
        for tier in TIERS:
            members = [position for position, finding in enumerate(findings) if tiers.get(finding) == tier]
            if members:
                groups[tier] = members
    return groups


def append_groups(metrics: np.ndarray | Sequence[np.ndarray], groups: Mapping[str, list[int]]) -> np.ndarray:
    """``(..., metrics, findings + groups)`` from ``(..., metrics, findings)``, or from ``(..., findings)`` of each.

    numpy sums several metrics side by side in another order than each alone, so the last bits depend on which is given.
    """
    if isinstance(metrics, np.ndarray):
        means = [macro_mean(metrics[..., members])[..., None] for members in groups.values()]
        return np.concatenate([metrics, *means], axis=-1)
    return np.stack([append_groups(values, groups) for values in metrics], axis=-2)


def _patients(labels, weights, groups) -> np.ndarray:
    """Patients each column rests on ``(findings + groups,)``; a group on all who have one of its findings or more."""
    labels = np.asarray(labels, dtype=float)
    present = [(labels[:, members] == 1).any(axis=1) for members in groups.values()]
    of_groups = count_patients(np.stack(present, axis=1), weights) if present else []
    return np.array([*count_scarcer_patients(labels, weights), *of_groups])
