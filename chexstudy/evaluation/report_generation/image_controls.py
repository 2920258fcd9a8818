"""What a generator is shown in place of the image it writes about: a model that scores the same then reads no image.

These are pixels as the store has them, so that they pass the same preprocessing as any image.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from chexstudy.encoders.embeddings import PixelSource
from chexstudy.errors import StudyError

OWN = ""
MEAN, ZEROS = "mean_image", "zeros"
SHUFFLED, SHUFFLED_ALIKE = "shuffled", "shuffled_alike"
NO_INDICATION = "no_indication"
# As they are called in words.
CONTROLS = {
    MEAN: "the mean training image",
    ZEROS: "a black image",
    SHUFFLED: "another patient's image",
    SHUFFLED_ALIKE: "another patient's image of the same view and sex",
    NO_INDICATION: "the image without the indication",
}
_BATCH = 256


def show_images(
    control: str, rows: pd.DataFrame, training: pd.DataFrame, pixels: PixelSource, generator: np.random.Generator
) -> np.ndarray:
    """The pixels, uint8 ``(rows, size, size)``, that are shown in place of those of rows of a cohort.

    ``training`` are the rows whose mean is shown; the generator draws whose images are shuffled.
    """
    if control and control not in CONTROLS:
        raise StudyError(f"there is no control {control!r}: there are {', '.join(CONTROLS)}.")
    if control == MEAN:
        mean = mean_image(training.image_id.tolist(), pixels)
        return np.broadcast_to(mean, (len(rows), *mean.shape))
    shown = rows.image_id.to_numpy()
    if control in (SHUFFLED, SHUFFLED_ALIKE):
        alike = [*zip(rows["view"], rows.sex, strict=True)] if control == SHUFFLED_ALIKE else [()] * len(rows)
        shown = shown[shuffle_patients(rows.patient_id, alike, generator)]
    images = pixels.read(shown)
    return np.zeros_like(images) if control == ZEROS else images


def mean_image(image_ids: Sequence[str], pixels: PixelSource) -> np.ndarray:
    """The mean of images, uint8 ``(size, size)``."""
    total = sum(
        pixels.read(image_ids[start : start + _BATCH]).sum(axis=0, dtype=float)
        for start in range(0, len(image_ids), _BATCH)
    )
    return np.rint(total / len(image_ids)).astype(np.uint8)


def shuffle_patients(patients: Sequence[str], strata: Sequence, generator: np.random.Generator) -> np.ndarray:
    """For each case one of another patient of its stratum, ``int64 (cases,)``; every case is taken once, if possible.

    Where a stratum has no other patient, it is one of any stratum.
    """
    patients, strata = np.asarray(patients, dtype=str), pd.factorize(pd.Series(list(strata), dtype=object))[0]
    if len(set(patients)) < 2:
        raise StudyError("images cannot be shuffled among patients where there is one patient alone: take more.")
    taken = np.empty(len(patients), dtype=np.int64)
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        # Patients in a random order, each with all images: so many places on, everybody is somebody else.
        drawn = generator.permutation(np.unique(patients[members]))
        order = members[np.argsort(pd.Index(drawn).get_indexer(patients[members]), kind="stable")]
        most = np.unique(patients[members], return_counts=True)[1].max()
        taken[order] = np.roll(order, most)
        for place in members[patients[taken[members]] == patients[members]]:
            others = members[patients[members] != patients[place]]
            taken[place] = generator.choice(others if len(others) else np.flatnonzero(patients != patients[place]))
    return taken
