"""Curate any embeddings from files: the door for those who have features and ids, and no cohort.

Source of the methods: see each of `chexstudy.curation.methods`.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from chexstudy.code_closure import code_revision, hash_closure
from chexstudy.cohort.groups import find_members
from chexstudy.curation.choice import count_budget
from chexstudy.curation.embeddings.files import check_outputs, limit_threads, report_audit, write_table
from chexstudy.curation.embeddings.group_quotas import GroupQuota, apply_quotas, parse_quota
from chexstudy.curation.embeddings.inputs import (
    allocate_features,
    normalise_rows,
    open_embeddings,
    read_image_ids,
    read_losses,
    read_matching_table,
    require_one_space,
    require_same_rows,
)
from chexstudy.curation.methods import METHODS, SIGNALS, Method, find_method
from chexstudy.curation.quality.audit import audit_selection
from chexstudy.errors import StudyError
from chexstudy.runs import hash_file
from chexstudy.workflow.parameters import check_names, parse_text


@dataclass(frozen=True)
class CurationRequest:
    """What is to be curated, how, and where the subset goes."""

    embeddings: Path  # ``.npy``, ``(rows, dim)``; with ``text``, the image side
    ids: Path  # CSV or Parquet with a column ``image_id``, rows in the order of ``embeddings``
    out: Path  # parquet to write, ``image_id`` and ``weight`` of the chosen
    method: str = "budgeted"  # name of a method
    keep: float = 0.227  # share up to 1, or number of pairs above
    seed: int = 0  # of everything the method draws
    text: Path | None = None  # ``.npy`` of text embeddings in the same order
    losses: Path | None = None  # CSV or Parquet with ``image_id``, ``loss`` and perhaps ``reference_loss``
    scores: Path | None = None  # parquet to write, ``image_id`` and ``score`` of all
    table: Path | None = None  # CSV or Parquet with ``image_id`` and columns of a cohort table: who is in which group
    quotas: tuple[str, ...] = ()  # such as ``sex=F:0.9x``; see `chexstudy.curation.embeddings.group_quotas`
    report: bool = False  # print the audit of what was kept
    audit: Path | None = None  # parquet to write the audit's table to
    threads: int | None = None  # at most so many; None leaves it to the libraries
    options: Mapping[str, str] = field(default_factory=dict)  # options of the method, as texts

    @property
    def inputs(self) -> dict[str, Path]:
        """The files that are read."""
        names = ("embeddings", "ids", "text", "losses", "table")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


@dataclass(frozen=True)
class CurationPlan:
    """A curation that has been checked as far as can be without reading the embeddings."""

    request: CurationRequest
    method: Method  # how pairs are chosen
    options: dict[str, object]  # of the method
    image_ids: np.ndarray  # ``(rows,)``
    sides: dict[str, np.ndarray]  # embeddings by side, ``image`` and perhaps ``text``, ``(rows, dim)`` each
    budget: int  # how many pairs are kept
    signals: dict[str, np.ndarray]  # losses the method needs, ``(rows,)`` each
    table: pd.DataFrame | None  # who is in which group, in the order of the embeddings
    quotas: list[GroupQuota]
    groups: dict[str, np.ndarray]  # members ``(rows,)`` of the group of each quota


def curate_files(request: CurationRequest) -> None:
    """Curate, write the subset, and say in plain sentences what was done."""
    with limit_threads(request.threads):
        plan = plan_curation(request)
        print(_describe_plan(plan), flush=True)
        start = time.monotonic()
        decisions, note, set_aside = carry_out(plan)
        seconds = time.monotonic() - start
        kept = decisions[decisions.kept]
        share = len(kept) / len(decisions)
        print(f"{request.method} kept {len(kept):,} of {len(decisions):,} pairs ({share:.1%}) in {seconds:.1f} s.")
        if note:
            print(note)
        record = _describe_origin(plan) | {"note": note}
        write_table(kept[["image_id", "weight"]], request.out, record)
        print(f"The subset, image_id and weight, is in {request.out}.")
        if request.scores:
            write_table(decisions[["image_id", "score"]], request.scores, record)
            print(f"The scores of all pairs, image_id and score, are in {request.scores}.")
        if request.report:
            print()
            generator = np.random.default_rng(request.seed)
            # Copies of an image are embedded alike, so the image side tells them.
            features = plan.sides["image"]
            report_audit(
                audit_selection(plan.table, decisions.kept.to_numpy(), generator, features=features), request.audit
            )
            if set_aside.any():
                print("\nWhat was set aside beforehand; kept is what was not.")
                report_audit(audit_selection(plan.table, ~set_aside, generator, features=features))


def plan_curation(request: CurationRequest) -> CurationPlan:
    """Read everything but the numbers in the embeddings, and check it."""
    method = find_method(request.method)
    place, declared = f"method {method.name}", {option.name: option for option in method.list_options()}
    if request.options and not declared:
        raise StudyError(f"{place} has no options: leave out {next(iter(request.options))!r}.")
    check_names(request.options, declared, place)
    options = {name: parse_text(declared[name], text, place) for name, text in request.options.items()}
    outputs = [path for path in (request.out, request.scores, request.audit) if path is not None]
    check_outputs(outputs, request.inputs.values())
    if not 0 <= request.seed < 2**63:
        raise StudyError(f"the seed must be a whole number from 0 to 2**63 - 1, not {request.seed}.")
    paths = {"image": request.embeddings} | ({"text": request.text} if request.text else {})
    sides = {side: open_embeddings(path) for side, path in paths.items()}
    ids = read_image_ids(request.ids)
    table = read_matching_table(request.table, ids, optional=None) if request.table else None
    losses = read_losses(request.losses, ids) if request.losses else {}
    method.require_signals({*losses, *sides})
    require_same_rows(paths, sides, request.ids, len(ids))
    if {"image", "text"} <= set(method.needs):
        require_one_space(f"method {method.name}", sides, paths)
    budget = count_budget(request.keep, len(ids))
    signals = {name: losses[name] for name in method.needs if name in losses}
    quotas = [parse_quota(quota) for quota in request.quotas]
    groups = {quota.name: find_members(table, quota.kind, quota.group) for quota in quotas}
    return CurationPlan(request, method, options, ids, sides, budget, signals, table, quotas, groups)


def carry_out(plan: CurationPlan) -> tuple[pd.DataFrame, str, np.ndarray]:
    """Read, check and normalise the embeddings, and choose.

    Rows are brought to unit norm. With a text side, what is curated are the joint features: the unit-norm embeddings of
    both sides, side by side, at unit norm.
    Returns ``image_id, score, kept, weight``, one row a pair in the given order; the choice's note; and which pairs
    ``(rows,)`` were set aside before anything was chosen.
    """
    joint, units = _normalise_sides(plan)
    generator = torch.Generator().manual_seed(plan.request.seed)
    choice = plan.method.choose(joint, plan.budget, generator, **units, **plan.signals, **plan.options)
    rows = len(plan.image_ids)
    set_aside = np.zeros(rows, bool) if choice.set_aside is None else choice.set_aside
    before = int(set_aside[choice.rows].sum())
    choice = apply_quotas(choice, plan.groups, plan.quotas)
    note, taken_back = choice.note, int(set_aside[choice.rows].sum()) - before
    if taken_back > 0:
        note += f" Group quotas took {taken_back:,} of them back."
    weights = np.zeros(rows)
    weights[choice.rows] = choice.weights
    decisions = {"image_id": plan.image_ids, "score": choice.scores, "kept": choice.kept, "weight": weights}
    return pd.DataFrame(decisions), note, set_aside


def _normalise_sides(plan: CurationPlan) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Joint features ``(rows, sum of dims)``, and views of the sides in it that the method needs, of equal norms."""
    sides, rows, folder = plan.sides, len(plan.image_ids), plan.request.out.parent
    joint = allocate_features(rows, sum(side.shape[1] for side in sides.values()), folder)
    start, units = 0, {}
    for name, embeddings in sides.items():
        part = joint[:, start : start + embeddings.shape[1]]
        path = plan.request.embeddings if name == "image" else plan.request.text
        normalise_rows(embeddings, str(path), part, len(sides) ** -0.5)
        if name in plan.method.needs:
            units[name] = part
        start += embeddings.shape[1]
    return joint, units


def _describe_plan(plan: CurationPlan) -> str:
    dims = [side.shape[1] for side in plan.sides.values()]
    size = len(plan.image_ids) * sum(dims) * 4 / 1e6
    takes = f"{size / 1e3:.1f} GB" if size >= 1e3 else f"{size:.0f} MB" if size >= 1 else "less than 1 MB"
    quotas = f", with group quotas {', '.join(plan.request.quotas)}" if plan.quotas else ""
    return (
        f"{len(plan.image_ids):,} rows of {' + '.join(f'{dim:,}' for dim in dims)} numbers "
        f"({plan.sides['image'].dtype}); each is brought to unit norm, which takes {takes}.\n"
        f"Keeping {plan.budget:,} of them by {plan.method.name} ({plan.method.summary}), seed {plan.request.seed}"
        f"{quotas}."
    )


def _describe_origin(plan: CurationPlan) -> dict:
    inputs = {name: {"file": path.name, "sha256": hash_file(path)} for name, path in plan.request.inputs.items()}
    return {
        "method": plan.method.name,
        "paper": plan.method.paper,
        "options": plan.options,
        "keep": plan.request.keep,
        "budget": plan.budget,
        "rows": len(plan.image_ids),
        "seed": plan.request.seed,
        "group_quotas": [str(quota) for quota in plan.quotas],
        "inputs": inputs,
        "code_revision": code_revision(),
        "code_hash": hash_closure(__name__),
    }


def describe_methods() -> str:
    """Every method with what it keeps, what it needs beyond embeddings, and its options."""
    width = max(map(len, METHODS))
    lines = []
    for name, method in METHODS.items():
        lines.append(f"{name:<{width}}  {method.summary} ({method.paper})")
        needs = [SIGNALS[need] for need in method.needs if need != "image"]
        details = [f"needs {'; '.join(needs)}"] if needs else []
        options = [
            f"{one.name} ({'its choice' if one.default is None else one.default})" for one in method.list_options()
        ]
        details += [f"-p {', '.join(options)}"] if options else []
        lines += [f"{'':<{width}}    {detail}" for detail in details]
    return "\n".join(lines)
