"""Label-noise detection: how well mismatch scores tell wrong pairs from sound and from rare ones."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from chexstudy.cohort.prevalence import NO_TIER
from chexstudy.curation.quality.pair_mismatch import MismatchScores
from chexstudy.errors import StudyError
from chexstudy.statistics.bootstrap import RESAMPLES, bootstrap_patients, count_scarcer_patients, interval
from chexstudy.statistics.ranking import auroc

ALL_PAIRS = "all"
DETECTION_COLUMNS = ("score", "wrong", "against", "among", "value", "ci_low", "ci_high", "n", "positives")
_RARE_TIER = "tail"


def measure_detection(
    scored: MismatchScores,
    truth: pd.DataFrame | None,
    tiers: Sequence[str],
    patient_ids: Sequence[str],
    generator: np.random.Generator,
    resamples: int = RESAMPLES,
    bands: Sequence[str] | None = None,
) -> pd.DataFrame:
    """AUROC of each score for wrong pairs, with 95 % intervals from drawing patients.

    Truth (``mismatched`` and ``junk``; None if not known), the rarest tier of each pair, and bands, which add the
    measures among the pairs of each, are of the same pairs in the same order.

    Returns:
        One row for each

        - ``score``: ``mismatch_score``, ``mismatch``, ``isolation`` and, as the baseline, ``clip_score``, the agreement
          of image and text, low meaning wrong;
        - kind of ``wrong`` pair: ``mismatched``, ``junk`` or ``either``;
        - what it is told from, ``against``: all ``sound`` pairs, or the ``rare`` ones alone, sound pairs with a finding
          of the tail;
        - set of pairs that it is measured ``among``: ``all`` or a band;

        with ``value, ci_low, ci_high``, ``n`` pairs of both kinds and ``positives`` wrong ones. NaN where one kind is
        absent, and no interval for fewer than five patients of a kind.
    """
    if truth is None or (np.asarray(tiers) == NO_TIER).all():
        print("Without a known truth and labels it cannot be said how well rare pairs are told from wrong ones.")
        return pd.DataFrame(columns=DETECTION_COLUMNS)
    pairs = len(scored.score)
    given = {"truth": truth, "tiers": tiers, "patient_ids": patient_ids, "bands": bands}
    for name, values in given.items():
        if values is not None and len(values) != pairs:
            raise StudyError(f"{name} has {len(values)} rows for {pairs} pairs: pass one a pair, in their order.")
    mismatched, junk = truth.mismatched.to_numpy(dtype=bool), truth.junk.to_numpy(dtype=bool)
    wrong = {"mismatched": mismatched, "junk": junk, "either": mismatched | junk}
    sound = ~wrong["either"]
    against = {"sound": sound, "rare": sound & (np.asarray(tiers) == _RARE_TIER)}
    among = {ALL_PAIRS: np.ones(pairs, dtype=bool)}
    among |= {name: np.asarray(bands) == name for name in sorted(set(() if bands is None else bands))}
    questions = [(kind, other, where) for kind in wrong for other in against for where in among]
    # -1 leaves a pair out of a question.
    asked = [np.select([wrong[kind], against[other]], [1, 0], -1) for kind, other, _ in questions]
    labels = np.stack(
        [np.where(among[where], label, -1) for label, (*_, where) in zip(asked, questions, strict=True)], 1
    )
    weights = bootstrap_patients(patient_ids, resamples, generator)
    patients = count_scarcer_patients(labels, weights)
    scores = {"mismatch_score": scored.score, "mismatch": scored.mismatch, "isolation": scored.isolation}
    scores["clip_score"] = -scored.agreement
    tables = []
    for name, values in scores.items():
        columns = np.broadcast_to(values[:, None], labels.shape)
        low, high = interval(auroc(labels, columns, weights), patients=patients)
        table = pd.DataFrame(questions, columns=["wrong", "against", "among"])
        measured = {"value": auroc(labels, columns), "ci_low": low, "ci_high": high}
        counts = {"n": (labels >= 0).sum(axis=0), "positives": (labels == 1).sum(axis=0)}
        tables.append(table.assign(score=name, **measured, **counts))
    return pd.concat(tables, ignore_index=True)[list(DETECTION_COLUMNS)]


def tabulate_detection(measured: pd.DataFrame) -> pd.DataFrame:
    """AUROC of the score and of the plain agreement of image and text, among all pairs and in the outlier band."""
    shown = measured[
        measured.score.isin(["mismatch_score", "clip_score"]) & measured.among.isin([ALL_PAIRS, "outlier"])
    ]
    return shown.set_index(["among", "wrong", "against", "score"]).sort_index()


def list_detection(measured: pd.DataFrame) -> pd.DataFrame:
    """`measure_detection` as rows of the results table, metric ``auroc``; the caller adds task, arm, seed and data set.

    ``finding`` is the kind of wrong pair, ``setting`` the score, ``reference`` what it is told from, ``group`` the set
    it is measured among.
    """
    names = {"wrong": "finding", "score": "setting", "against": "reference", "among": "group"}
    columns = ["value", "ci_low", "ci_high", "n", "positives"]
    return measured.reindex(columns=[*names, *columns]).rename(columns=names).assign(metric="auroc")
