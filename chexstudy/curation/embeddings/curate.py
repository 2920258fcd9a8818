"""Curate any embeddings: the door for those who have features and ids, and no cohort.

Source of the methods: see each of `chexstudy.curation.methods`.
"""

import difflib
import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from chexstudy.curation.choice import count_budget
from chexstudy.curation.embeddings.group_floors import Floor, apply_floors, find_floored_groups, parse_floor
from chexstudy.curation.embeddings.inputs import (
    allocate_features,
    check_image_ids,
    check_lengths,
    check_shape_and_type,
    check_signal,
    normalise_rows,
)
from chexstudy.curation.methods import METHODS, SIGNALS, Method
from chexstudy.errors import StudyError
from chexstudy.workflow.parameters import Parameter, check_names


@dataclass(frozen=True)
class CurationPlan:
    """A curation that has been checked as far as can be without reading the embeddings."""

    method: Method  # how pairs are chosen
    sides: dict[str, np.ndarray]  # embeddings by side, ``image`` and perhaps ``text``, ``(rows, dim)`` each
    side_names: dict[str, str]  # what they are called in messages
    image_ids: np.ndarray  # ``(rows,)``
    budget: int  # how many pairs are kept
    seed: int  # seed of the method
    signals: dict[str, np.ndarray]  # losses the method needs, ``(rows,)`` each
    options: dict[str, object]  # of the method
    floors: list[Floor]  # least shares of groups
    groups: dict[str, np.ndarray]  # members ``(rows,)`` of the group of each floor
    folder: Path  # where features lie meanwhile if they are too large for memory


def curate_embeddings(
    features: np.ndarray,
    image_ids: Sequence,
    method: str = "budgeted",
    keep: float = 0.227,
    seed: int = 0,
    **signals_and_options: object,
) -> pd.DataFrame:
    """Choose pairs of a set by their embeddings; see `plan_curation` for all arguments and errors.

    Returns:
        One row for each pair, in the given order: ``image_id``, ``score`` (the higher, the sooner kept), ``kept``, and
        ``weight`` in training (0 where not kept).
    """
    return carry_out(plan_curation(features, image_ids, method, keep, seed, **signals_and_options))


def plan_curation(
    features: np.ndarray,
    image_ids: Sequence,
    method: str = "budgeted",
    keep: float = 0.227,
    seed: int = 0,
    *,
    text: np.ndarray | None = None,
    loss: Sequence | None = None,
    reference_loss: Sequence | None = None,
    floors: Sequence[str] = (),
    table: pd.DataFrame | None = None,
    names: Mapping[str, str] | None = None,
    folder: str | Path = ".",
    **options: object,
) -> CurationPlan:
    """Check everything about a curation but the numbers in the embeddings.

    Rows are brought to unit norm before anything is chosen. With ``text``, ``features`` are the image side and what is
    curated are the joint features: the unit-norm embeddings of both sides, side by side, at unit norm.

    Args:
        features: embeddings ``(rows, dim)``, float16, float32 or float64, perhaps memory-mapped; they are not changed.
        image_ids: ``(rows,)`` texts or whole numbers, each once.
        method: a name of `chexstudy.curation.methods.METHODS`.
        keep: the budget: a share up to 1, or above that a whole number of pairs.
        seed: seed of everything the method draws.
        text: text embeddings ``(rows, text_dim)``.
        loss: ``(rows,)``, for methods that need it.
        reference_loss: ``(rows,)``, likewise.
        floors: least shares of groups kept, such as ``sex=F:0.9x``; see `chexstudy.curation.embeddings.group_floors`.
        table: who is in which group, one row for each pair in their order; needed for floors.
        names: what ``features``, ``image_ids`` and ``text`` are called in messages, if not so.
        folder: where features lie meanwhile if they are too large for memory.
        options: options of the method; see `list_options`.
    """
    chosen = find_method(method)
    named = {"features": "features", "image_ids": "image_ids", "text": "text"} | dict(names or {})
    losses = {name: given for name, given in (("loss", loss), ("reference_loss", reference_loss)) if given is not None}
    _check_needs(chosen, {*losses, "image", *(["text"] if text is not None else [])})
    check_names(options, [option.name for option in list_options(chosen)], f"method {method}")
    if not 0 <= seed < 2**63:
        raise StudyError(f"the seed must be a whole number from 0 to 2**63 - 1, not {seed}.")
    ids = check_image_ids(image_ids, named["image_ids"])
    sides = {"image": features} if text is None else {"image": features, "text": text}
    side_names = {"image": named["features"], "text": named["text"]}
    for side, embeddings in sides.items():
        check_shape_and_type(embeddings.shape, embeddings.dtype, side_names[side])
        check_lengths(embeddings, ids, side_names[side], named["image_ids"])
    widths = [side.shape[1] for side in sides.values()]
    if {"image", "text"} <= set(chosen.needs) and widths[0] != widths[1]:
        raise StudyError(
            f"method {method} compares image and text, but {named['features']} has {widths[0]:,} numbers a row and "
            f"{named['text']} {widths[1]:,}: give embeddings of one joint space."
        )
    budget = count_budget(keep, len(ids))
    signals = {name: check_signal(losses[name], ids, name) for name in chosen.needs if name in losses}
    parsed = [parse_floor(floor) for floor in floors]
    if parsed and (table is None or len(table) != len(ids)):
        raise StudyError("floors need a table with one row for each embedding, which says who is in which group.")
    groups = find_floored_groups(parsed, table) if parsed else {}
    return CurationPlan(
        chosen, sides, side_names, ids, budget, seed, signals, dict(options), parsed, groups, Path(folder)
    )


def carry_out(plan: CurationPlan) -> pd.DataFrame:
    """Read, check and normalise the embeddings, and choose; returns what `curate_embeddings` returns."""
    joint, units = _normalise_sides(plan)
    generator = torch.Generator().manual_seed(plan.seed)
    choice = plan.method.choose(joint, plan.budget, generator, **units, **plan.signals, **plan.options)
    choice = apply_floors(choice, plan.groups, plan.floors)
    rows = len(plan.image_ids)
    kept, weights = np.zeros(rows, bool), np.zeros(rows)
    kept[choice.rows], weights[choice.rows] = True, choice.weights
    return pd.DataFrame({"image_id": plan.image_ids, "score": choice.scores, "kept": kept, "weight": weights})


def _normalise_sides(plan: CurationPlan) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Joint features ``(rows, sum of dims)``, and those single sides at unit norm that the method needs."""
    sides, rows = plan.sides, len(plan.image_ids)
    joint = allocate_features(rows, sum(side.shape[1] for side in sides.values()), plan.folder)
    start, units = 0, {}
    for name, embeddings in sides.items():
        part = joint[:, start : start + embeddings.shape[1]]
        normalise_rows(embeddings, plan.side_names[name], part, len(sides) ** -0.5)
        if name in plan.method.needs:
            units[name] = allocate_features(rows, embeddings.shape[1], plan.folder)
            np.multiply(part, np.float32(len(sides) ** 0.5), out=units[name])
        start += embeddings.shape[1]
    return joint, units


def find_method(name: str) -> Method:
    """The method of that name."""
    if name in METHODS:
        return METHODS[name]
    closest = difflib.get_close_matches(name, list(METHODS), n=1)
    guess = f"did you mean {closest[0]!r}" if closest else "choose one of them"
    raise StudyError(f"there is no method {name!r}; the methods are {', '.join(METHODS)}: {guess}.")


def _check_needs(method: Method, given: set[str]) -> None:
    for need in method.needs:
        if need not in given:
            raise StudyError(f"method {method.name} needs {SIGNALS[need]}: give {need}.")


def list_options(method: Method) -> list[Parameter]:
    """The plain options of a method: keyword arguments other than signals, with their types and defaults."""
    declared = inspect.signature(method.choose, eval_str=True).parameters.values()
    options = []
    for parameter in declared:
        kind = _plain_type(parameter.annotation)
        if parameter.default is not inspect.Parameter.empty and parameter.name not in SIGNALS and kind:
            options.append(Parameter(parameter.name, kind, parameter.default))
    return options


def _plain_type(annotation: object) -> type | None:
    """``int`` of ``int`` and of ``int | None``, likewise for float, str and bool; None for anything else."""
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        kinds = [kind for kind in typing.get_args(annotation) if kind is not types.NoneType]
        annotation = kinds[0] if len(kinds) == 1 else None
    return annotation if annotation in (int, float, str, bool) else None
