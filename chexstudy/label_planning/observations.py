"""Observed learning curves: the AUROC of repeated draws at several numbers of labels, and how much draws differ.

A curve is read from a table with one row a draw: ``label_budget/curves.parquet``, or a table of one's own with ``n``
and ``auroc``. The same draw under several training seeds of an encoder counts once, with the mean over them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from chexstudy.errors import StudyError

CURVES = "label_budget/curves.parquet"
FEWEST_POINTS = 3
_WORDS = {"encoder": "encoder", "finding": "finding", "data_set": "", "unit": "cases"}
# The variance of an AUROC falls as 1/n where draws are independent; the data may say otherwise, within reason.
_EXPONENTS = np.linspace(0, 2, 81)
_EXPONENT_PRIOR = (1.0, 0.3)
_LAW_DEGREES = 4.0


@dataclass(frozen=True, eq=False)
class LearningCurve:
    """One encoder on one finding."""

    encoder: str  # its name
    finding: str  # what is classified
    labels: np.ndarray  # ``(points,)``, rising numbers of labels, at least three
    values: np.ndarray  # ``(points, draws)``, AUROC; NaN where a number of labels was drawn less often than another
    data_set: str = ""  # what it was measured on
    unit: str = "cases"  # what is counted, ``cases`` or ``positives``
    prevalence: float = np.nan  # positives among the cases drawn; NaN where it is not known

    @property
    def means(self) -> np.ndarray:
        """Mean over draws ``(points,)``."""
        return np.nanmean(self.values, axis=1)

    @property
    def draws(self) -> np.ndarray:
        """How often each number of labels was drawn ``(points,)``; draws that all agree are one draw of everything."""
        count = np.sum(~np.isnan(self.values), axis=1)
        same = np.nanmax(self.values, axis=1) == np.nanmin(self.values, axis=1)
        return np.where(same, 1, count)

    @property
    def variances(self) -> np.ndarray:
        """Variance between draws ``(points,)``; NaN at a single draw."""
        centred = np.nansum((self.values - self.means[:, None]) ** 2, axis=1)
        draws = self.draws
        return np.where(draws > 1, centred / np.maximum(draws - 1, 1), np.nan)

    @property
    def most(self) -> float:
        """The largest number of labels."""
        return float(self.labels[-1])

    def until(self, most: float) -> "LearningCurve":
        """The part with at most so many labels; it may have fewer than three points."""
        kept = self.labels <= most
        return replace(self, labels=self.labels[kept], values=self.values[kept])


def list_curves(table: pd.DataFrame, finding: str | None = None, encoder: str | None = None) -> list[LearningCurve]:
    """The learning curves that a table holds, or those of one finding or encoder.

    It has the columns ``n`` and ``auroc``, and where there are several of them ``draw``, ``finding``, ``encoder``,
    ``seed``, ``data_set``, ``unit`` (``cases`` or ``positives``: then ``positives`` is what is counted) and
    ``positives``. Rows without an AUROC are draws that could not be evaluated; they are left out.
    """
    table = _check_table(table)
    for name, wanted in (("finding", finding), ("encoder", encoder)):
        if wanted is not None:
            known = sorted(table[name].unique())
            if wanted not in known:
                raise StudyError(f"there is no curve of the {name} {wanted!r}: choose among {', '.join(known)}.")
            table = table[table[name] == wanted]
    curves = []
    for identity, rows in table.groupby(["encoder", "finding", "data_set", "unit"], sort=False):
        rows, (one, other, *place) = rows.dropna(subset=["auroc"]), map(str, identity)
        if rows.n.nunique() < FEWEST_POINTS:
            raise StudyError(
                f"the curve of {one!r} on {other!r} has {rows.n.nunique()} numbers of labels with an AUROC, and a "
                f"curve needs {FEWEST_POINTS}: draw more of them."
            )
        # Different seeds of an encoder see the same draws: their mean is the draw's value.
        drawn = rows.groupby(["n", "draw"]).auroc.mean().unstack()
        share = rows.positives.sum() / rows.cases.sum() if "positives" in rows else np.nan
        curves.append(LearningCurve(one, other, drawn.index.to_numpy(float), drawn.to_numpy(), *place, share))
    return sorted(curves, key=lambda curve: (curve.data_set, curve.unit, curve.encoder, curve.finding))


def _check_table(table: pd.DataFrame) -> pd.DataFrame:
    missing = [name for name in ("n", "auroc") if name not in table]
    if missing:
        raise StudyError(
            f"the table of curves lacks the column {missing[0]!r}: it needs n (numbers of labels) and auroc, and may "
            "have draw, finding, encoder, seed, data_set, unit and positives."
        )
    table = table.assign(**{name: word for name, word in _WORDS.items() if name not in table}).reset_index(drop=True)
    for name in {"n", "auroc", "positives"}.intersection(table):
        numbers = pd.to_numeric(table[name], errors="coerce").astype(float)
        if (numbers.isna() & table[name].notna()).any():
            raise StudyError(f"the column {name!r} of the table of curves holds something that is no number: mend it.")
        table[name] = numbers
    if table.auroc.isna().all():
        raise StudyError("the table of curves holds no AUROC: every row is empty or NaN.")
    if not table.auroc.dropna().between(0, 1).all():
        raise StudyError("an AUROC lies between 0 and 1: mend the column 'auroc' of the table of curves.")
    if not set(table.unit) <= {"cases", "positives"}:
        raise StudyError("the column 'unit' says what is counted, cases or positives: mend the table of curves.")
    counted, table["cases"] = table.unit == "positives", table.n
    if counted.any():
        if "positives" not in table:
            raise StudyError("a table of curves in positives needs the column 'positives'.")
        table["n"] = table.n.where(~counted, table.positives)
    if not (np.isfinite(table.n) & (table.n >= 1)).all():
        raise StudyError("a number of labels is 1 or more: mend the column 'n' of the table of curves.")
    identity = [name for name in ("data_set", "unit", "encoder", "seed", "finding", "n") if name in table]
    if "draw" not in table:
        table["draw"] = table.groupby(identity).cumcount()
    elif table.duplicated([*identity, "draw"]).any():
        raise StudyError("two rows of the table of curves are the same draw: number the draws at each n apart.")
    return table


@dataclass(frozen=True)
class Noise:
    """How much draws differ: their variance is ``scale * (n / at) ** -exponent``."""

    exponent: float  # how fast it falls with the number of labels, the same for all curves of a table
    at: float  # number of labels at which it is ``scale``

    def relative(self, labels: np.ndarray) -> np.ndarray:
        """Variance of one draw relative to that at ``at``."""
        return (np.asarray(labels, dtype=float) / self.at) ** -self.exponent


def estimate_noise(curves: Sequence[LearningCurve], at: float | None = None) -> Noise:
    """The law by which draws differ, by maximum likelihood with a weak prior on the exponent (1, sd 0.3).

    The exponent is shared by all curves, each has its own scale: few draws tell a scale, but hardly an exponent.
    Without ``at`` scales are those at the geometric mean of all numbers of labels.
    """
    at = at or float(np.exp(np.mean(np.concatenate([np.log(curve.labels) for curve in curves]))))
    centre, width = _EXPONENT_PRIOR
    gain = -(((_EXPONENTS - centre) / width) ** 2) / 2
    for curve in curves:
        repeated = curve.draws > 1
        if repeated.any():
            freedom, spread = (curve.draws - 1)[repeated, None], curve.variances[repeated, None]
            relative = (curve.labels[repeated, None] / at) ** -_EXPONENTS
            scale = (freedom * spread / relative).sum(axis=0) / freedom.sum()
            gain -= (freedom * np.log(relative * scale)).sum(axis=0) / 2
    return Noise(float(_EXPONENTS[np.argmax(gain)]), at)


def relate_variances(curve: LearningCurve, exponent: float, at: float) -> np.ndarray:
    """Variance of one draw at each number of labels relative to that at ``at`` ``(points,)``.

    Heads on few labels can fail in ways that no law describes, and then settle at once. What the draws at a point show
    is therefore blended with the law of an exponent, which counts as much as four more degrees of freedom: one draw
    follows the law, twenty speak for themselves.
    """
    law = (curve.labels / at) ** -exponent
    degrees = curve.draws - 1
    if not degrees.any():
        return law
    ratio = np.nan_to_num(curve.variances) / law
    ratio = ratio / np.median(ratio[degrees > 0] + np.finfo(float).tiny)
    return law * (degrees * np.clip(ratio, 0.01, 100) + _LAW_DEGREES) / (degrees + _LAW_DEGREES)


def weigh_points(curve: LearningCurve, noise: Noise) -> np.ndarray:
    """Weights of the means ``(points,)``, one over their variance up to a factor; the mean weight is 1.

    The variances are those of the law, not the observed ones: the variance of five draws is itself known within a
    factor of three, and weights that follow it would trust a point because its draws happened to agree.
    """
    weights = curve.draws / noise.relative(curve.labels)
    return weights / weights.mean()


def name_curves(curves: Iterable[LearningCurve]) -> pd.DataFrame:
    """Columns ``encoder``, ``finding``, ``data_set``, ``unit``: what each curve is of."""
    return pd.DataFrame([{name: getattr(curve, name) for name in _WORDS} for curve in curves], columns=list(_WORDS))
