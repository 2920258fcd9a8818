"""Which images of a cohort lie otherwise than the others: negative, rotated, mirrored, lateral, or unlike all.

Most images are upright, and teach what that is: images are held against their mean, then twice against a score that
learned from those not found wrong (`chexstudy.cohort.upright_score`). A cohort that is inverted altogether is not found
out.
"""

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression

from chexstudy.cohort.pixels.store import PixelStore, open_pixel_store, read_filed, turn_pixels
from chexstudy.cohort.pixels.turning import KINDS, MIRRORED, UPRIGHT
from chexstudy.cohort.upright_score import (
    FOLDS,
    calibrate_scores,
    describe_images,
    judge_scores,
    score_versions,
    split_patients,
    turn_scores,
)
from chexstudy.runs import Run, forget_artifact, hash_values
from chexstudy.statistics.proportions import wilson_interval

ORIENTATION, POWER = "orientation.parquet", "orientation_power.parquet"
CHECK, MEND, SKIP = "check", "mend", "skip"
LATERAL, UNLIKE, UNKNOWN = "lateral", "unlike the others", "unknown"
# What is asked of a cohort's own images: how many would be found, had they been turned so.
ASKED = (*KINDS[1:5], KINDS[8])
FEWEST = 50  # images, and fewer say nothing

_FOUND, _POWER = ("found", "probability"), ("kind", "images", "share", "low", "high")
_ROUNDS = (False, True, True)  # of which the score learns: not before the plainly wrong are out
# So many times farther below the usual likeness than that of a tenth: drawn and real radiographs stay within 2.6.
_FAR, _LEAST_DISTANCE = 2.75, 0.01
_FEWEST_LATERAL = 20
# Where fewer mirrored images than that would be found, what is called so is mostly a lung that is white.
_FEWEST_SEEN = 0.5


def settle_orientation(run: Run, orientation: str) -> tuple[PixelStore, dict]:
    """Look how a study's images lie (``check``), turn back those that lie wrong (``mend``), or do neither (``skip``).

    What is turned back stands in the store's index, not in its shards, and is undone by ``check``; annotations lie as
    the file does, and are turned when they are read. Notes come with the store.
    """
    if orientation == SKIP:
        for table in (ORIENTATION, POWER):
            forget_artifact(run.path(table))
    else:
        check_orientation(run)
    table, _ = read_orientation(run)
    found = table.set_index("image_id")["found"]
    turned = found[found.isin(KINDS[1:])] if orientation == MEND else found[:0]
    turn_pixels(run, turned.to_dict())
    notes = {
        "too few images to tell how they lie": found.eq(UNKNOWN).sum(),
        **{f"turned back, found {kind}": number for kind, number in turned.value_counts().items()},
        "left and right changed places in mirrored images (look: a heart on the right side looks the same)": (
            turned.str.contains(MIRRORED).sum()
        ),
    }
    return open_pixel_store(run), {note: int(number) for note, number in notes.items() if number}


def check_orientation(run: Run) -> None:
    """Write the tables of `find_orientation` for all that is stored, as the files show it, if they are not current."""
    store, cohort, shards = read_filed(run)
    parameters = {"shards": shards, "rows": hash_values(cohort[["image_id", "patient_id", "view"]].to_dict("list"))}
    if run.is_current(ORIENTATION, run.key(parameters)):
        return
    is_lateral = cohort["view"].eq(LATERAL).to_numpy()
    found, power = find_orientation(store.images, cohort["patient_id"].to_numpy(), is_lateral)
    found.insert(0, "image_id", cohort["image_id"])
    run.write_table(POWER, power)
    run.write_table(ORIENTATION, found)
    run.record(ORIENTATION, parameters, files=(POWER,))


def read_orientation(run: Run) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The two tables of `find_orientation`, the first with ``image_id``; empty if nobody looked."""
    if not run.has(ORIENTATION):
        return pd.DataFrame(columns=["image_id", *_FOUND], dtype=str), pd.DataFrame(columns=_POWER)
    return run.read_table(ORIENTATION), run.read_table(POWER)


def find_orientation(
    images: np.ndarray, patients: np.ndarray, is_lateral: np.ndarray
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """How each image lies, and how many would be found.

    Images are ``uint8 (n, size, size)``, or what gives one by its number, of ``patients (n,)``; those that the source
    calls lateral, bool ``(n,)``, are what others are compared with from 20 on.

    Gives a row an image: ``found`` (one of `KINDS`, ``lateral``, ``unlike the others``, or ``unknown`` in a cohort of
    fewer than 50 frontal images or 5 patients) and its ``probability`` (or NaN); and a row for each kind in `ASKED`:
    which ``share`` of the upright images would be found, had they lain so, with Wilson's 95 % interval ``low``,
    ``high``. If it is below a half for ``mirrored``, none is called so.
    """
    found = np.where(is_lateral, LATERAL, UNKNOWN).astype(object)
    probability = np.full(len(found), np.nan)
    if (~is_lateral).sum() < FEWEST or np.unique(patients).size < FOLDS:
        return _tabulate(found, probability), pd.DataFrame(columns=_POWER)
    features, frontal = describe_images(images), ~is_lateral
    sound = frontal
    for learns in _ROUNDS:
        scores, likeness = score_versions(features, patients, sound, learns)
        scales = calibrate_scores(scores[sound])
        best, certainty = judge_scores(scores, scales)
        usual, less = np.quantile(likeness[sound], (0.5, 0.1))
        is_far = usual - likeness > _FAR * max(usual - less, _LEAST_DISTANCE)
        sound = frontal & ~is_far & (best == 0)
    power = _measure_power(scores[sound], scales)
    if power.set_index("kind").loc[MIRRORED, "share"] < _FEWEST_SEEN:
        best, certainty = judge_scores(scores, scales, sees_mirrors=False)
    found[frontal] = np.where(is_far, UNLIKE, np.array(KINDS, dtype=object)[best])[frontal]
    probability[frontal & ~is_far] = certainty[frontal & ~is_far]
    if is_lateral.sum() >= _FEWEST_LATERAL:
        lateral = _score_laterals(features, patients, is_lateral)
        is_called = lateral > 0.5
        found[is_called], probability[is_called] = LATERAL, lateral[is_called]
        looks_frontal = is_lateral & ~is_called
        found[looks_frontal], probability[looks_frontal] = UPRIGHT, 1 - lateral[looks_frontal]
    return _tabulate(found, probability), power


def _measure_power(scores: np.ndarray, scales: tuple[float, float]) -> pd.DataFrame:
    rows = []
    for kind in ASKED:
        share = (judge_scores(turn_scores(scores, kind), scales)[0] == KINDS.index(kind)).mean()
        rows.append((kind, len(scores), share, *wilson_interval(share, len(scores))))
    return pd.DataFrame(rows, columns=_POWER)


def _tabulate(found: np.ndarray, probability: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(dict(zip(_FOUND, (found.astype(str), probability), strict=True)))


def _score_laterals(features: np.ndarray, patients: np.ndarray, is_lateral: np.ndarray) -> np.ndarray:
    """Probability ``(n,)`` that an image is lateral, by other patients' images that the source calls so."""
    lateral = is_lateral.astype(float)
    for learned, judged in split_patients(patients, np.ones(len(features), bool)):
        if len(set(is_lateral[learned])) == 2:
            model = LogisticRegression(C=10.0, max_iter=300).fit(features[learned], is_lateral[learned])
            lateral[judged] = model.predict_proba(features[judged])[:, 1]
    return lateral
