"""From files of embeddings to a file with the subset: the work behind ``chexstudy curate --embeddings``."""

import json
import os
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd

from chexstudy.code_closure import code_revision, hash_closure
from chexstudy.curation.embeddings.curate import CurationPlan, carry_out, find_method, list_options, plan_curation
from chexstudy.curation.embeddings.inputs import open_embeddings, read_image_ids, read_losses, read_matching_table
from chexstudy.curation.methods import METHODS, SIGNALS
from chexstudy.curation.quality.audit import AuditReport, audit_selection, describe_audit
from chexstudy.errors import StudyError
from chexstudy.runs import atomic_path, hash_file
from chexstudy.workflow.parameters import check_names, parse_text

PROVENANCE = b"chexstudy"
_DECIDING_LIBRARIES = ("numpy", "torch", "numba", "scikit-learn", "faiss-cpu", "faiss-gpu-cu12")


@dataclass(frozen=True)
class FileCuration:
    """What is to be curated, how, and where the subset goes."""

    embeddings: Path  # ``.npy``, ``(rows, dim)``; with ``text``, the image side
    ids: Path  # CSV or Parquet with a column ``image_id``, rows in the order of ``embeddings``
    out: Path  # parquet to write, ``image_id`` and ``weight`` of the chosen
    method: str = "budgeted"  # name of a method
    keep: float = 0.227  # share up to 1, or number of pairs above
    seed: int = 0  # seed of the method
    text: Path | None = None  # ``.npy`` of text embeddings in the same order
    losses: Path | None = None  # CSV or Parquet with ``image_id``, ``loss`` and perhaps ``reference_loss``
    scores: Path | None = None  # parquet to write, ``image_id`` and ``score`` of all
    table: Path | None = None  # CSV or Parquet with ``image_id`` and columns of a cohort table: who is in which group
    # least keep rates of groups, such as ``sex=F:0.9x``; see `chexstudy.curation.embeddings.group_floors`
    floors: tuple[str, ...] = ()
    report: bool = False  # print the audit of what was kept
    audit: Path | None = None  # parquet to write the audit's table to
    threads: int | None = None  # at most so many; None leaves it to the libraries
    options: Mapping[str, str] = field(default_factory=dict)  # options of the method, as texts

    @property
    def inputs(self) -> dict[str, Path]:
        """The files that are read."""
        names = ("embeddings", "ids", "text", "losses", "table")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    @property
    def outputs(self) -> list[Path]:
        """The files that are written."""
        return [path for path in (self.out, self.scores, self.audit) if path is not None]


def curate_files(wanted: FileCuration) -> None:
    """Curate, write the subset, and say in plain sentences what was done.

    Everything that can be checked without reading the embeddings is checked first.
    """
    options = parse_options(wanted)
    check_outputs(wanted)
    with limit_threads(wanted.threads):
        plan, table = _read_plan(wanted, options)
        print(_describe_plan(plan, wanted), flush=True)
        start = time.monotonic()
        decisions = carry_out(plan)
        seconds = time.monotonic() - start
        kept = decisions[decisions.kept]
        share = len(kept) / len(decisions)
        print(f"{wanted.method} kept {len(kept):,} of {len(decisions):,} pairs ({share:.1%}) in {seconds:.1f} s.")
        record = _describe_origin(wanted, plan)
        write_table(kept[["image_id", "weight"]], wanted.out, record)
        print(f"The subset, image_id and weight, is in {wanted.out}.")
        if wanted.scores:
            write_table(decisions[["image_id", "score"]], wanted.scores, record)
            print(f"The scores of all pairs, image_id and score, are in {wanted.scores}.")
        if wanted.report:
            print()
            # Copies of an image are embedded alike, so the image side tells them.
            report_audit(
                audit_selection(
                    table,
                    decisions.kept.to_numpy(),
                    np.random.default_rng(wanted.seed),
                    features=plan.sides["image"],
                ),
                wanted.audit,
            )


def report_audit(report: AuditReport, path: Path | None = None) -> None:
    """Print an audit, and write its table to ``path`` if one is given."""
    print(describe_audit(report))
    if path:
        with atomic_path(path) as temporary:
            report.table.to_parquet(temporary, index=False)
        print(f"\nThe audit's table is in {path}.")


def _read_plan(wanted: FileCuration, options: Mapping[str, object]) -> tuple[CurationPlan, pd.DataFrame | None]:
    """The plan, and the table of groups in the order of the embeddings."""
    embeddings = open_embeddings(wanted.embeddings)
    text = open_embeddings(wanted.text) if wanted.text else None
    ids = read_image_ids(wanted.ids)
    table = read_matching_table(wanted.table, ids, optional=None) if wanted.table else None
    names = {"features": wanted.embeddings, "image_ids": wanted.ids, "text": wanted.text}
    plan = plan_curation(
        embeddings,
        ids,
        wanted.method,
        wanted.keep,
        wanted.seed,
        text=text,
        **(read_losses(wanted.losses, ids) if wanted.losses else {}),
        floors=wanted.floors,
        table=table,
        names={name: str(path) for name, path in names.items()},
        folder=wanted.out.parent,
        **options,
    )
    return plan, table


def _describe_plan(plan: CurationPlan, wanted: FileCuration) -> str:
    dims = [side.shape[1] for side in plan.sides.values()]
    size = len(plan.image_ids) * sum(dims) * 4 / 1e6
    takes = f"{size / 1e3:.1f} GB" if size >= 1e3 else f"{size:.0f} MB" if size >= 1 else "less than 1 MB"
    floors = f", with floors {', '.join(wanted.floors)}" if wanted.floors else ""
    return (
        f"{len(plan.image_ids):,} rows of {' + '.join(f'{dim:,}' for dim in dims)} numbers "
        f"({plan.sides['image'].dtype}); each is brought to unit norm, which takes {takes}.\n"
        f"Keeping {plan.budget:,} of them by {plan.method.name} ({plan.method.summary}), seed {plan.seed}{floors}."
    )


def parse_options(wanted: FileCuration) -> dict[str, object]:
    """The options of the method by their declared types."""
    declared = {parameter.name: parameter for parameter in list_options(find_method(wanted.method))}
    place = f"method {wanted.method}"
    if wanted.options and not declared:
        raise StudyError(f"{place} has no options: leave out {next(iter(wanted.options))!r}.")
    check_names(wanted.options, declared, place)
    return {name: parse_text(declared[name], text, place) for name, text in wanted.options.items()}


def check_outputs(wanted: FileCuration) -> None:
    """Find out before the work whether its results can be written."""
    for path in wanted.outputs:
        check_output(path)
        if path in wanted.inputs.values():
            raise StudyError(f"{path} is an input and would be lost: choose another name for the output.")
        if wanted.outputs.count(path) > 1:
            raise StudyError(f"{path} cannot hold two outputs: choose another name for one of them.")


def check_output(path: Path) -> None:
    """Raise a StudyError unless a parquet file can be written there."""
    if path.suffix != ".parquet":
        raise StudyError(f"{path} must end in .parquet, which is what is written.")
    if path.is_dir():
        raise StudyError(f"{path} is a folder: name a file in it.")
    if not path.parent.is_dir():
        raise StudyError(f"there is no folder {path.parent} to write {path.name} into: make it first.")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise StudyError(f"{path.parent} cannot be written to: choose another folder for {path.name}.")


@contextmanager
def limit_threads(threads: int | None) -> Iterator[None]:
    """Let BLAS, OpenMP, torch and numba use at most so many threads; None changes nothing."""
    if threads is None:
        yield
        return
    if threads < 1:
        raise StudyError(f"threads must be at least 1, not {threads}.")
    import numba
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads(), numba.get_num_threads()
    try:
        with threadpool_limits(threads):
            torch.set_num_threads(threads)
            numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
            yield
    finally:
        torch.set_num_threads(before[0])
        numba.set_num_threads(before[1])


def _describe_origin(wanted: FileCuration, plan: CurationPlan) -> dict:
    """How a subset came to be. It holds no time of day, so that the same call writes the same bytes."""
    return {
        "method": plan.method.name,
        "paper": plan.method.paper,
        "options": plan.options,
        "keep": wanted.keep,
        "budget": plan.budget,
        "rows": len(plan.image_ids),
        "seed": plan.seed,
        "floors": [str(floor) for floor in plan.floors],
        "inputs": {name: {"file": path.name, "sha256": hash_file(path)} for name, path in wanted.inputs.items()},
        "code_revision": code_revision(),
        "code_hash": hash_closure(__name__),
        "versions": dict(_versions()),
    }


def _versions() -> Iterator[tuple[str, str]]:
    yield "python", platform.python_version()
    for name in _DECIDING_LIBRARIES:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue


def write_table(table: pd.DataFrame, path: Path, record: Mapping) -> None:
    """Write a parquet table atomically, with how it came to be under the key `PROVENANCE` of its metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = pa.Table.from_pandas(table, preserve_index=False)
    labelled = {**(content.schema.metadata or {}), PROVENANCE: json.dumps(record, sort_keys=True).encode()}
    with atomic_path(path) as temporary:
        pq.write_table(content.replace_schema_metadata(labelled), temporary)


def read_provenance(path: Path) -> dict:
    """How a table written by `write_table` came to be; empty for any other parquet table."""
    import pyarrow.parquet as pq

    return json.loads((pq.read_schema(path).metadata or {}).get(PROVENANCE, b"{}"))


def describe_methods() -> str:
    """Every method with what it keeps, what it needs beyond embeddings, and its options."""
    width = max(map(len, METHODS))
    lines = []
    for name, method in METHODS.items():
        lines.append(f"{name:<{width}}  {method.summary} ({method.paper})")
        needs = [SIGNALS[need] for need in method.needs if need != "image"]
        details = [f"needs {'; '.join(needs)}"] if needs else []
        options = [
            f"{one.name} ({'its choice' if one.default is None else one.default})" for one in list_options(method)
        ]
        details += [f"-p {', '.join(options)}"] if options else []
        lines += [f"{'':<{width}}    {detail}" for detail in details]
    return "\n".join(lines)
