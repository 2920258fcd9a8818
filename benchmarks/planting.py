"""Faults planted in a cohort at known rates, and what can be seen of them in pixels alone.

Planted are exchanged reports, images that are no radiograph or a spoiled one in place of the right one, and copies
under another patient's name. Reports are exchanged between patients whose labels differ: where both are healthy, no
score could or should tell. Blank plates are not planted, for building a cohort sets them aside.
"""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from near_duplicates import COPIES, spoil

from chexstudy.cohort.images.decode import fit_square
from chexstudy.cohort.near_duplicates import find_pairs
from chexstudy.cohort.orientation import find_orientation
from chexstudy.cohort.phantom.junk import DRAWERS, JUNK_KINDS, SPOILED, spoil_radiograph
from chexstudy.cohort.pixels.turning import UPRIGHT
from chexstudy.cohort.reports import training_text
from chexstudy.cohort.table import finding_columns, label_matrix
from chexstudy.encoders.build import build_image_encoder
from chexstudy.encoders.embeddings import embed_images
from chexstudy.encoders.spec import EncoderSpec
from chexstudy.encoders.upstream_encoders import IMAGE
from chexstudy.errors import StudyError
from chexstudy.pretraining.objectives.contrastive_loss import pair_losses
from chexstudy.pretraining.self_supervision.crops import draw_views, make_crops
from chexstudy.vectors.kmeans import cluster_features
from chexstudy.vectors.neighbours import density, neighbour_distances

SWAP, COPY, JUNK = "swap", "copy", "junk"
_JUNK = tuple(kind for kind in JUNK_KINDS if kind != "blank")
_NEIGHBOURS, _PROTOTYPES, _IMAGES_A_CLUSTER = 10, 6, 25
_VIEWS, _AREAS, _TEMPERATURE, _IMAGES_AT_ONCE = 4, (0.5, 1.0), 0.07, 480


@dataclass(frozen=True)
class Planted:
    """A cohort with faults in it; rows of all are the same."""

    cohort: pd.DataFrame
    images: np.ndarray  # uint8 ``(n, side, side)``
    fault: np.ndarray  # ``swap``, ``copy``, ``junk`` or empty
    kind: np.ndarray  # of junk or of copy, or empty
    origin: np.ndarray  # row of the sound cohort that each is of

    @property
    def is_copied(self) -> np.ndarray:
        """Whether a row is the sound one of which another is a copy."""
        return (self.fault != COPY) & np.isin(self.origin, self.origin[self.fault == COPY])


def plant_faults(cohort: pd.DataFrame, images: np.ndarray, rate: float, generator: np.random.Generator) -> Planted:
    """Spoil a share of a sound cohort in each of the three ways; a row has one fault at the most.

    Images are ``uint8 (n, side, side)`` in the cohort's order; copies are added at the end.
    """
    count, side = round(rate * len(cohort)), images.shape[1]
    if count < 2:
        raise StudyError(f"a share of {rate:g} of {len(cohort)} pairs is fewer than the two that a swap needs.")
    order = generator.permutation(len(cohort))
    reports, images = cohort["report"].to_numpy(dtype=object).copy(), images.copy()
    fault, kind = np.full(len(cohort), "", dtype=object), np.full(len(cohort), "", dtype=object)
    for first, second in _pair_up(cohort, order, count // 2):
        reports[[first, second]] = reports[[second, first]]
        fault[[first, second]] = SWAP
    left = order[fault[order] == ""]
    if len(left) < 2 * count:
        raise StudyError(f"{len(cohort)} pairs hold no three times {count} faults: plant a smaller share.")
    spoiled, copied = left[:count], left[count : 2 * count]
    for row, how in zip(spoiled, np.resize(generator.permutation(_JUNK), count), strict=True):
        fault[row], kind[row] = JUNK, how
        images[row] = (
            spoil_radiograph(how, images[row], {}, generator)[0] if how in SPOILED else DRAWERS[how](side, generator)
        )
    how_copied = np.resize(generator.permutation(COPIES), count)
    pictures = [spoil(images[row], how, generator) for row, how in zip(copied, how_copied, strict=True)]
    copies = cohort.iloc[copied].copy()
    for name in ("image_id", "patient_id", "study_id"):
        copies[name] = "copy/" + copies[name]
    return Planted(
        pd.concat([cohort.assign(report=reports), copies], ignore_index=True),
        np.concatenate([images, [fit_square(np.ascontiguousarray(one), side, "pad") for one in pictures]]),
        np.concatenate([fault, np.full(count, COPY, dtype=object)]),
        np.concatenate([kind, how_copied]),
        np.concatenate([np.arange(len(cohort)), copied]),
    )


def _pair_up(cohort: pd.DataFrame, order: np.ndarray, count: int) -> list[tuple[int, int]]:
    """So many pairs of rows, no row twice, whose patients, texts and labels differ; none where no two texts differ."""
    text, patient = cohort["report"].map(training_text).to_numpy(), cohort["patient_id"].to_numpy()
    labels = np.nan_to_num(label_matrix(cohort, finding_columns(cohort)), nan=-2)
    if not labels.shape[1]:
        labels = pd.factorize(text)[0][:, None]
    free, pairs = list(order[text[order] != ""]), []
    while free and len(pairs) < count:
        row = free.pop(0)
        others = (
            place
            for place, other in enumerate(free)
            if text[other] != text[row] and patient[other] != patient[row] and (labels[other] != labels[row]).any()
        )
        place = next(others, None)
        if place is not None:
            pairs.append((row, free.pop(place)))
    return pairs


def score_images(planted: Planted, generator: np.random.Generator) -> dict[str, np.ndarray]:
    """What can be told of each image ``(n,)`` without its report, high where it is rather wrong.

    The first six look for what is unlike the others, in the upstream image encoder or, for orientation, in pixels; the
    last two for copies.
    """
    side = planted.images.shape[1]
    encoder = build_image_encoder(EncoderSpec(IMAGE, image_size=side)).eval()
    features = torch.nn.functional.normalize(torch.from_numpy(embed_images(encoder, planted.images)), dim=1)
    plain = features.numpy()
    to_prototype = torch.cdist(features, cluster_features(features, _PROTOTYPES, 20, 42)).min(dim=1).values
    clusters = cluster_features(features, max(2, len(features) // _IMAGES_A_CLUSTER), 20, 42)
    cluster = torch.cdist(features, clusters).argmin(dim=1).numpy()
    patients = planted.cohort["patient_id"].to_numpy()
    lies, _ = find_orientation(planted.images, patients, planted.cohort["view"].eq("lateral").to_numpy())
    certainty = lies["probability"].fillna(1.0).to_numpy()
    similarity = np.zeros(len(features))
    found = find_pairs(planted.images, planted.cohort)
    for end in ("first", "second"):
        np.maximum.at(similarity, found[end].to_numpy(), found["similarity"].to_numpy())
    return {
        "distance to 10th neighbour": neighbour_distances(plain, _NEIGHBOURS),
        "low density": -density(plain, _NEIGHBOURS),
        "distance to prototype": to_prototype.numpy(),
        "small cluster": -np.bincount(cluster)[cluster].astype(float),
        "loss of two views": _measure_view_loss(encoder, planted.images, generator),
        "orientation": np.where(lies["found"] == UPRIGHT, 1 - certainty, 1 + certainty),
        "near its neighbour": -neighbour_distances(plain, 1),
        "near-duplicate": similarity,
    }


@torch.no_grad()
def _measure_view_loss(encoder, images: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """How hard two crops of each image are to match among other images, mean contrastive loss in nats ``(n,)``.

    A self-supervised loss (SimCLR; Chen et al. 2020) under the encoder as it is.
    """
    loss, side = np.zeros(len(images)), images.shape[1]
    for _ in range(_VIEWS):
        order = generator.permutation(len(images))
        for rows in np.array_split(order, -(-len(order) // _IMAGES_AT_ONCE)):
            pixels = torch.from_numpy(images[rows]).unsqueeze(1)
            crops = (make_crops(pixels, draw_views(len(rows), side, _AREAS, generator), side) for _ in range(2))
            views = [
                torch.nn.functional.normalize(encoder(one.round().to(torch.uint8)).float(), dim=1) for one in crops
            ]
            loss[rows] += pair_losses(*views, torch.tensor(-math.log(_TEMPERATURE))).numpy() / _VIEWS
    return loss
