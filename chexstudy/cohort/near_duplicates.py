"""Near-duplicates: images of one exposure, or of two within one study, whatever was done to the copies since.

Every image is laid over the mean image, so that turned, shifted, cropped and inverted copies meet in one frame, where
few numbers describe it. The images nearest by them, and those of its study, are registered with it and must agree on
its pixels, finer and finer: as two exposures of one moment within a study, to the noise for a patient's other images,
which may look as alike, and as one exposure after resizing and compression for anybody else's.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pandas as pd
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from chexstudy.cohort.images.registration import (
    AFFINE,
    Relief,
    carve_relief,
    correlate,
    find_field,
    frame_field,
    register,
    warp,
)
from chexstudy.cohort.pixels.store import read_filed, withhold_images
from chexstudy.cohort.quality import NEAR_DUPLICATE, QUARANTINE_COLUMNS
from chexstudy.cohort.table import SPLITS
from chexstudy.devices import use_threads
from chexstudy.progress import progress
from chexstudy.runs import Run, hash_values
from chexstudy.vectors.neighbours import find_most_similar

DUPLICATES = "duplicates.parquet"
KEEP, ONE_PER_GROUP = "keep", "one_per_group"

SAME_STUDY, SAME_PATIENT, STRANGERS = "second exposure", "copy, same patient", "copy, other patient"
_ALIKE = {SAME_STUDY: 0.40, SAME_PATIENT: 0.94, STRANGERS: 0.84}  # least similarity
_FRAME_SIDES, _FRAME_STEPS = (16, 32), 8
_EDGE = 3  # pixels of the frame that the description leaves out, on each side
_SAMPLE, _ROUNDS = 1000, 4  # images and rounds that make the mean image
_DIMENSIONS, _IMAGES_A_DIMENSION = 128, 8
_NEIGHBOURS = 5
_LEAST_CANDIDATE = 0.35  # inner product of descriptions
_PAIR_STEPS = {32: 8, 64: 6, 96: 4}  # steps of registration by side: what is coarse agrees before what is fine
_SHOWN, _OVERLAP = 0.3, 0.4  # least local contrast, and least share of the frame that both show
_STRETCH = 1.3  # greatest ratio of a map's two scales
_IMAGES_AT_ONCE = 64


def settle_near_duplicates(run: Run, policy: str, workers: int = 2) -> dict[str, int]:
    """Keep a study's near-duplicates (``keep``), one image a group (``one_per_group``) or none (``drop``); count them.

    What does not stay goes to quarantine; of a group stays the first in the split nearest to the test.
    """
    groups = tabulate_near_duplicates(run, workers) if policy != KEEP else None
    withheld = choose_withheld(groups, policy) if policy != KEEP else pd.DataFrame(columns=QUARANTINE_COLUMNS)
    withhold_images(run, withheld)
    return {"near-duplicates set aside": len(withheld)} if len(withheld) else {}


def tabulate_near_duplicates(run: Run, workers: int = 2) -> pd.DataFrame:
    """The groups of near-duplicates among a study's stored images, found once and kept as ``duplicates.parquet``.

    One row an image of a group: ``image_id``, ``group`` from 0 by first image, ``similarity`` to the one in the group
    it is most like, and ``evidence``, what confirms the two; with its ``source``, ``split`` and ``image_path``.
    """
    store, cohort, shards = read_filed(run)
    rows = cohort[["image_id", "patient_id", "study_id", "source", "split", "image_path"]]
    parameters = {"shards": shards, "rows": hash_values(rows.to_dict("list"))}

    def find() -> list[pd.DataFrame]:
        groups = group_pairs(find_pairs(store.images, rows, workers), rows["image_id"])
        return [groups.merge(rows[["image_id", "source", "split", "image_path"]], on="image_id")]

    return run.keep_tables([DUPLICATES], parameters, find)[0]


def count_near_duplicates(groups: pd.DataFrame) -> pd.DataFrame:
    """How many groups and images, by the ``sources`` and ``splits`` that a group lies in."""
    joined = groups.groupby("group")[["source", "split"]].agg(lambda names: " + ".join(sorted(set(names))))
    joined["images"] = groups["group"].value_counts()
    counts = joined.groupby(["source", "split"])["images"].agg(["size", "sum"]).reset_index()
    return counts.set_axis(["sources", "splits", "groups", "images"], axis=1)


def find_pairs(images, cohort: pd.DataFrame, workers: int = 2) -> pd.DataFrame:
    """Pairs of near-duplicates: positions ``first`` < ``second``, ``similarity`` and ``evidence``, in order.

    ``images`` are ``uint8 (n, size, size)`` in the order of the cohort's rows. The result does not depend on the
    number of ``workers``, threads that each take some images.
    """
    pairs, alike, relation = np.empty((0, 2), dtype=np.int64), np.empty(0), np.empty(0, dtype=str)
    if len(cohort) > 1:
        # One thread within each: how the last bits of sums round depends on their number.
        with use_threads(1), ThreadPoolExecutor(workers) as pool:
            frame = _Frame(images)
            blocks = _cut(np.arange(len(cohort)))
            laid = pool.map(partial(frame.describe, images), blocks)
            laid = progress(laid, len(blocks), "laying images over one another")
            described, *places = map(np.concatenate, zip(*laid, strict=True))
            pairs = _list_candidates(described, cohort)
            relation = _relate(cohort, pairs)
            needed = np.array([_ALIKE[one] for one in relation])
            blocks = _cut(pairs)
            compared = pool.map(partial(_compare, images, *places), blocks, _cut(needed))
            alike = np.concatenate([alike, *progress(compared, len(blocks), "comparing pairs")])
    found = alike > 0
    columns = {"first": pairs[:, 0], "second": pairs[:, 1], "similarity": alike.round(3), "evidence": relation}
    return pd.DataFrame(columns)[found].reset_index(drop=True)


def group_pairs(pairs: pd.DataFrame, image_ids: pd.Series) -> pd.DataFrame:
    """Whatever is linked by pairs as one group, see `tabulate_near_duplicates`; in the order of group and image."""
    links = coo_array((np.ones(len(pairs)), (pairs["first"], pairs["second"])), shape=(len(image_ids),) * 2)
    both = pd.concat([pairs.rename(columns={one: "row"}) for one in ("first", "second")])
    best = both.sort_values(["row", "similarity", "evidence"], ascending=[True, False, True]).drop_duplicates("row")
    group = pd.factorize(connected_components(links, directed=False)[1][best["row"]])[0]
    table = {"image_id": image_ids.to_numpy()[best["row"]], "group": group}
    table = pd.DataFrame(table | {name: best[name].to_numpy() for name in ("similarity", "evidence")})
    return table.sort_values("group", kind="stable", ignore_index=True)


def choose_withheld(groups: pd.DataFrame, policy: str) -> pd.DataFrame:
    """Rows of the quarantine, of the near-duplicates that do not stay; see `settle_near_duplicates`."""
    nearness = groups["split"].map(SPLITS.index)
    stays = nearness.groupby(groups["group"]).idxmax()
    withheld = groups.assign(reason=NEAR_DUPLICATE, detail="also in " + groups["group"].map(stays.map(groups["split"])))
    if policy == ONE_PER_GROUP:
        withheld = withheld.drop(index=stays)
    return withheld[list(QUARANTINE_COLUMNS)].reset_index(drop=True)


class _Frame:
    """The mean image of a cohort at two sizes, and the directions in which images differ once they lie over it."""

    def __init__(self, images):
        sample = np.unique(np.linspace(0, len(images) - 1, _SAMPLE).astype(int))
        pixels = _read(images, sample)
        field, self._means = find_field(pixels), []
        maps = frame_field(field)
        for side in _FRAME_SIDES:
            reliefs = carve_relief(pixels, field, side)
            for _ in range(_ROUNDS):
                laid = warp(reliefs, maps)
                values = laid.values.sum(0, keepdim=True) / laid.inside.sum(0, keepdim=True).clamp(min=1.0)
                mean = Relief(values, torch.ones_like(values))
                maps = register(reliefs, mean, maps, _FRAME_STEPS)
            self._means.append(mean)
        seen = self._cut_out(warp(reliefs, maps))
        spread, directions = torch.linalg.eigh(seen.T @ seen)
        # Of few images, more directions would tell an image from its own copy.
        count = min(_DIMENSIONS, max(1, len(sample) // _IMAGES_A_DIMENSION))
        spread, directions = spread[-count:], directions[:, -count:]
        # Common to most chests is what tells them apart least.
        self._whiten = directions / torch.sqrt(spread.clamp(min=1e-3 * float(spread[-1]) + 1e-9))

    def describe(self, images, rows: np.ndarray) -> tuple[np.ndarray, ...]:
        """Of images in rows of all: descriptions of length 1, fields, maps onto the frame, and signs (polarity)."""
        pixels = _read(images, rows)
        field = find_field(pixels)
        maps, signs = frame_field(field), None
        for side, mean in zip(_FRAME_SIDES, self._means, strict=True):
            reliefs = carve_relief(pixels, field, side)
            if signs is None:
                signs = torch.where(correlate(warp(reliefs, maps), mean)[0] < 0, -1.0, 1.0)
            reliefs = reliefs._replace(values=reliefs.values * signs[:, None, None])
            maps = register(reliefs, mean, maps, _FRAME_STEPS)
        described = torch.nn.functional.normalize(self._cut_out(warp(reliefs, maps)) @ self._whiten)
        return described.numpy(), field.numpy(), maps.numpy(), signs.numpy()

    def _cut_out(self, laid: Relief) -> torch.Tensor:
        return torch.nn.functional.normalize(laid.values[:, _EDGE:-_EDGE, _EDGE:-_EDGE].flatten(1))


def _list_candidates(described: np.ndarray, cohort: pd.DataFrame) -> np.ndarray:
    """Pairs of positions ``(pairs, 2)``, the lower first: neighbours by description, and those within a study."""
    found, similar = find_most_similar(described, described, min(_NEIGHBOURS + 1, len(described)))
    rows = np.repeat(np.arange(len(found)), found.shape[1]).reshape(found.shape)
    near = similar >= _LEAST_CANDIDATE
    pairs = [np.stack([rows[near], found[near]], 1)]
    study = cohort["study_id"].to_numpy()
    order = np.argsort(study, kind="stable")
    for apart in range(1, _NEIGHBOURS + 1):
        first, second = order[:-apart], order[apart:]
        pairs.append(np.stack([first, second], 1)[study[first] == study[second]])
    pairs = np.sort(np.concatenate(pairs), axis=1)
    return np.unique(pairs[pairs[:, 0] < pairs[:, 1]], axis=0)


def _compare(images, fields, maps, signs, pairs: np.ndarray, needed: np.ndarray) -> np.ndarray:
    """Similarity ``(pairs,)`` registered, at the finest side; 0 if any is below ``needed``; the rest see `describe`."""
    similarity, left = np.zeros(len(pairs)), np.arange(len(pairs))
    onto = torch.from_numpy(maps[pairs])
    for side, steps in _PAIR_STEPS.items():
        reliefs = []
        for place in (0, 1):
            rows = pairs[left, place]
            relief = carve_relief(_read(images, rows), torch.from_numpy(fields[rows]), side)
            reliefs.append(relief._replace(values=relief.values * torch.from_numpy(signs[rows])[:, None, None]))
        fixed = warp(reliefs[0], onto[:, 0])
        onto[:, 1] = register(reliefs[1], fixed, onto[:, 1], steps, AFFINE)
        alike, overlap, shown = correlate(fixed, warp(reliefs[1], onto[:, 1]))
        scales = torch.linalg.svdvals((onto[:, 1] @ torch.linalg.inv(onto[:, 0]))[:, :2, :2])
        sound = (overlap > _OVERLAP) & (shown > _SHOWN) & (scales[:, 0] < _STRETCH * scales[:, 1])
        agrees = sound & (alike >= torch.from_numpy(needed[left]))
        left, onto, alike = left[agrees.numpy()], onto[agrees], alike[agrees]
        if not len(left):
            return similarity
    similarity[left] = alike.numpy()
    return similarity


def _relate(cohort: pd.DataFrame, pairs: np.ndarray) -> np.ndarray:
    study, patient = (cohort[name].to_numpy()[pairs] for name in ("study_id", "patient_id"))
    is_one = [study[:, 0] == study[:, 1], patient[:, 0] == patient[:, 1]]
    return np.select(is_one, [SAME_STUDY, SAME_PATIENT], STRANGERS)


def _read(images, rows: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(images[rows])).float()


def _cut(items: np.ndarray) -> list[np.ndarray]:
    return [items[start : start + _IMAGES_AT_ONCE] for start in range(0, len(items), _IMAGES_AT_ONCE)]
