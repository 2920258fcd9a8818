"""What patches of an encoder see: their components as colours, and the patches most like a chosen one."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.patches import Rectangle

from chexstudy.cohort.annotations import Regions
from chexstudy.experiments.patch_similarity import (
    PatchFeatures,
    PatchQuery,
    colour_patches,
    cover_patches,
    find_similar_patches,
    measure_retrieval,
)
from chexstudy.plots.figure import Figure
from chexstudy.plots.looks import ACCENT, SEQUENCE
from chexstudy.plots.measurements import NothingToDraw
from chexstudy.plots.self_supervision import style_encoder
from chexstudy.plots.style import DOUBLE_MM, clear_frame, new_figure, show_radiograph
from chexstudy.pretraining.arms.definitions import split_name

_NEIGHBOURS = 5
_MOST_QUERIES = 3
_OTHER = SEQUENCE[2]
_COLUMNS_OF_NAMES = 0.45  # of a picture's width
_WIDEST_MM = 22  # of a picture


def _name(arm: str) -> str:
    return style_encoder(*split_name(arm)).name


def _open_grid(rows: int, columns: int) -> tuple[Drawing, np.ndarray]:
    """Pictures in rows, and room on the left for the name of each row."""
    side = min(DOUBLE_MM / (columns + _COLUMNS_OF_NAMES), _WIDEST_MM)
    figure = new_figure(height_mm=rows * (side + 1.5), width_mm=side * (columns + _COLUMNS_OF_NAMES))
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.ravel():
        clear_frame(axes)
    return figure, grid


def _name_row(axes: Axes, name: str) -> None:
    axes.set_ylabel(name.replace(", ", ",\n").replace(" images", "\nimages"), fontsize=6.5)


def _select_maps(seen: Mapping[str, PatchFeatures], pixels: np.ndarray) -> tuple:
    """Shares of the variance that three components explain, by encoder; their colours, and the radiographs drawn, the
    first of those seen ``(shown, side, side)``.
    """
    if not len(pixels):
        raise NothingToDraw("there are no radiographs to see")
    coloured = {arm: colour_patches(patches) for arm, patches in seen.items()}
    rows = [
        (arm, number + 1, share, len(seen[arm].values))
        for arm, (_, shares) in coloured.items()
        for number, share in enumerate(shares)
    ]
    table = pd.DataFrame(rows, columns=["arm", "component", "explained", "n"])
    return table, {arm: colours for arm, (colours, _) in coloured.items()}, pixels, next(iter(seen.values())).side


def _plot_maps(_: pd.DataFrame, colours: Mapping[str, np.ndarray], pixels: np.ndarray, side: int) -> Drawing:
    figure, grid = _open_grid(1 + len(colours), len(pixels))
    for axes, radiograph in zip(grid[0], pixels, strict=True):
        show_radiograph(axes, radiograph)
    _name_row(grid[0, 0], "Radiograph")
    for line, (arm, maps) in zip(grid[1:], colours.items(), strict=True):
        for axes, picture in zip(line, maps, strict=False):
            axes.imshow(picture, interpolation="nearest")
        _name_row(line[0], _name(arm))
    return figure


def _describe_maps(table: pd.DataFrame, _: Mapping[str, np.ndarray], pixels: np.ndarray, side: int) -> str:
    return (
        "The first three principal components of patch features as red, green and blue, computed over the patches of "
        f"{table.n.iloc[0]:,} test radiographs together, so that a colour means the same all along a row; the "
        f"encoders look at {side} pixels a side. Colours of different rows have nothing to do with each other. "
        f"{len(pixels)} radiographs, the first of the test set; no intervals."
    )


def _conclude_maps(table: pd.DataFrame, *_) -> str:
    shares = table.groupby("arm", sort=False).explained.sum()
    return f"Three components explain {'; '.join(f'{share:.0%} ({_name(arm)})' for arm, share in shares.items())}."


def _select_neighbours(
    seen: Mapping[str, PatchFeatures], regions: Regions, queries: Sequence[PatchQuery], pixels: np.ndarray
) -> tuple:
    """How often neighbours of patches on a finding lie on it, by encoder and finding; and what is drawn of it. Queries
    come smallest findings first, pixels are of all images seen.
    """
    if not queries:
        raise NothingToDraw("no region of a finding is known on the test set")
    tables = [
        measure_retrieval(patches, regions, queries, _NEIGHBOURS).assign(arm=arm) for arm, patches in seen.items()
    ]
    table = (
        pd.concat(tables)
        .groupby(["arm", "finding"], sort=False)
        .agg(hits=("hits", "mean"), chance=("chance", "mean"), n=("hits", "size"))
    )
    drawn = list({query.finding: query for query in reversed(queries)}.values())[::-1][:_MOST_QUERIES]
    return table.reset_index(), seen, regions, drawn, pixels


def _plot_neighbours(
    _: pd.DataFrame, seen: Mapping[str, PatchFeatures], regions: Regions, queries: list[PatchQuery], pixels
) -> Drawing:
    figure, grid = _open_grid(len(queries) * len(seen), 1 + _NEIGHBOURS)
    lines = iter(grid)
    for query in queries:
        for arm, patches in seen.items():
            line = next(lines)
            near = find_similar_patches(patches, query.image, query.place, _NEIGHBOURS)
            _name_row(line[0], _name(arm))
            for axes, (image, place, cosine) in zip(line, [(query.image, query.place, None), *near], strict=False):
                mask = regions.mask(patches.image_ids[image], query.finding)
                on = mask is not None and cover_patches(mask, patches.grid)[place] > 0
                show_radiograph(axes, pixels[image])
                step, colour = pixels.shape[1] / patches.grid, ACCENT if on else _OTHER
                corner = (place[1] * step - 0.5, place[0] * step - 0.5)
                axes.add_patch(Rectangle(corner, step, step, fill=False, edgecolor=colour, linewidth=1.2, gid="patch"))
                axes.set_title(query.finding if cosine is None else f"{cosine:.2f}", fontsize=6, pad=1.5)
    return figure


def _describe_neighbours(table: pd.DataFrame, seen: Mapping[str, PatchFeatures], *_) -> str:
    arm, one = next(iter(seen.items()))
    return (
        "Nearest neighbours of a patch. Left, the patch that holds most of a finding; beside it, of the test images "
        "whose best patch is most similar, that patch, with the cosine of both. Orange: it holds some of the same "
        "finding; blue: it does not. Findings of the smallest regions, the first image of each; encoders look at "
        f"{one.side} pixels a side, {one.grid} patches along it. Over all {table.n[table.arm == arm].sum()} "
        f"patches on a finding of {len(one.values)} images, numbers count how many of {_NEIGHBOURS} neighbours hold "
        "the same finding; no intervals."
    )


def _conclude_neighbours(table: pd.DataFrame, *_) -> str:
    words = []
    for arm, own in table.groupby("arm", sort=False):
        hits, chance = (np.average(own[name], weights=own.n) for name in ("hits", "chance"))
        words.append(f"{hits:.1%} ({_name(arm)}; {chance:.1%} of all patches do)")
    return f"Of the neighbours of a patch on a finding so many hold the same finding: {', '.join(words)}."


patch_maps = Figure("patch_maps", _select_maps, _plot_maps, _describe_maps, _conclude_maps)
patch_neighbours = Figure(
    "patch_neighbours", _select_neighbours, _plot_neighbours, _describe_neighbours, _conclude_neighbours
)
