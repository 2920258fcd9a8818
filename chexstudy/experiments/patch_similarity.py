"""What the patches of an image encoder tell apart: their main components over many images, and the most similar."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from chexstudy.cohort.annotations import FINDING, Regions, measure_lesion_sizes
from chexstudy.encoders.embeddings import PixelSource
from chexstudy.encoders.image import ImageEncoder
from chexstudy.errors import StudyError

_BATCH = 128
_SHOWN = (0.01, 0.99)  # quantiles of a component that become black and full colour


@dataclass(frozen=True)
class PatchFeatures:
    """Patches of the last block of an encoder, at some images."""

    image_ids: list[str]
    values: np.ndarray  # ``(images, grid, grid, dim)`` unit-norm float32
    side: int  # pixels at which the encoder looked

    @property
    def grid(self) -> int:
        """Patches a side."""
        return self.values.shape[1]


@torch.no_grad()
def see_patches(
    encoder: ImageEncoder, pixels: PixelSource, image_ids: Sequence[str], side: int = 0, device: str = "cpu"
) -> PatchFeatures:
    """Look at images with an encoder, at ``side`` pixels or at its own size; finer than it was trained shows more."""
    side, found = side or encoder.image_size, []
    encoder = encoder.at_size(side).to(device).eval()
    for start in range(0, len(image_ids), _BATCH):
        images = torch.from_numpy(np.array(pixels.read(image_ids[start : start + _BATCH]))).unsqueeze(1)
        patches = encoder.embed_blocks(images.to(device), 1)[2].float()
        found.append(torch.nn.functional.normalize(patches, dim=2).cpu().numpy())
    if not found:
        raise StudyError("there are no images whose patches could be seen.")
    values = np.concatenate(found)
    grid = round(values.shape[1] ** 0.5)
    return PatchFeatures(list(image_ids), values.reshape(len(values), grid, grid, -1), side)


def colour_patches(patches: PatchFeatures) -> tuple[np.ndarray, np.ndarray]:
    """The first three principal components of all patches of all images, as red, green and blue.

    Gives colours ``(images, grid, grid, 3)`` from 0 to 1, the same meaning the same in all images; and the shares of
    the variance that the components explain ``(3,)``.
    """
    values = patches.values.reshape(-1, patches.values.shape[-1]).astype(np.float64)
    values = values - values.mean(axis=0)
    variances, directions = np.linalg.eigh(values.T @ values)
    directions = directions[:, ::-1][:, :3]
    # A direction and its opposite explain as much: the one whose largest entry is positive is taken.
    directions = directions * np.sign(directions[np.abs(directions).argmax(axis=0), range(3)])
    components = values @ directions
    low, high = np.quantile(components, _SHOWN, axis=0)
    colours = ((components - low) / np.maximum(high - low, np.finfo(float).tiny)).clip(0, 1)
    shares = variances[::-1][:3] / max(variances.sum(), np.finfo(float).tiny)
    return colours.reshape(*patches.values.shape[:3], 3), shares


def find_similar_patches(
    patches: PatchFeatures, image: int, place: tuple[int, int], count: int
) -> list[tuple[int, tuple[int, int], float]]:
    """In each other image the patch most similar to one of an image, and of these the ``count`` most similar.

    Gives number of the image, row and column of the patch, and the cosine, the highest first.
    """
    cosines = (patches.values @ patches.values[(image, *place)]).reshape(len(patches.values), -1)
    best = cosines.argmax(axis=1)
    of_image = cosines[range(len(best)), best]
    of_image[image] = -np.inf
    order = np.argsort(-of_image, kind="stable")[: min(count, len(best) - 1)]
    return [(int(one), divmod(int(best[one]), patches.grid), float(of_image[one])) for one in order]


def cover_patches(region: np.ndarray, grid: int) -> np.ndarray:
    """Pixels of a region ``(side, side)``, bool, that lie in each patch: ``(grid, grid)``."""
    counts = np.zeros((grid, grid), dtype=int)
    np.add.at(counts, tuple(np.argwhere(region).T * grid // len(region)), 1)
    return counts


@dataclass(frozen=True)
class PatchQuery:
    """A patch whose like is sought."""

    image: int  # its number among those seen
    place: tuple[int, int]  # row and column
    finding: str  # that lies there; empty where none is known


def choose_queries(regions: Regions, image_ids: Sequence[str], grid: int) -> list[PatchQuery]:
    """The patch that holds most of a finding, for every finding of every image; smallest findings first.

    None where no finding has an outline or a box.
    """
    if regions.kind != FINDING or regions.table.empty:
        return []
    rows, places = pd.Index(image_ids), list(measure_lesion_sizes(regions).index)
    known = regions.table.sort_values("finding", key=lambda names: names.map(places.index), kind="stable")
    return [
        PatchQuery(rows.get_loc(row.image_id), divmod(int(cover_patches(row.mask, grid).argmax()), grid), row.finding)
        for row in known.itertuples()
    ]


def measure_retrieval(
    patches: PatchFeatures, regions: Regions, queries: Sequence[PatchQuery], count: int
) -> pd.DataFrame:
    """How often the patches most similar to one on a finding lie on the same finding of another image.

    Gives a row a query: ``finding``, ``hits`` (share of the ``count`` neighbours) and ``chance``, the share of all
    patches of other images that hold any of the finding.
    """
    on = {(row.image_id, row.finding): cover_patches(row.mask, patches.grid) > 0 for row in regions.table.itertuples()}
    nothing, found = np.zeros((patches.grid, patches.grid), dtype=bool), []
    covered = {
        finding: np.stack([on.get((image_id, finding), nothing) for image_id in patches.image_ids])
        for finding in {query.finding for query in queries}
    }
    for query in queries:
        near = find_similar_patches(patches, query.image, query.place, count)
        others = np.delete(covered[query.finding], query.image, axis=0)
        hits = [covered[query.finding][(image, *place)] for image, place, _ in near]
        found.append((query.finding, float(np.mean(hits)), float(others.mean())))
    return pd.DataFrame(found, columns=["finding", "hits", "chance"])
