"""What `chexstudy curate` writes: checked before the work, atomically, with how it came to be."""

import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pandas as pd

from chexstudy.curation.quality.audit import AuditReport, describe_audit
from chexstudy.errors import StudyError
from chexstudy.runs import atomic_path, list_versions

PROVENANCE = b"chexstudy"
_DECIDING_LIBRARIES = ("numpy", "torch", "numba", "scikit-learn", "faiss-cpu", "faiss-gpu-cu12")


def check_outputs(outputs: Sequence[Path], inputs: Collection[Path]) -> None:
    """Find out before the work whether its results can be written."""
    for path in outputs:
        check_output(path)
        if path in inputs:
            raise StudyError(f"{path} is an input and would be lost: choose another name for the output.")
        if outputs.count(path) > 1:
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
    """Let BLAS, OpenMP and torch use at most so many threads; None changes nothing."""
    if threads is not None and threads < 1:
        raise StudyError(f"threads must be at least 1, not {threads}.")
    from threadpoolctl import threadpool_limits

    from chexstudy.devices import use_threads

    # torch first, which reads how many there are before the others are limited, and gives as many back.
    with use_threads(threads) if threads else nullcontext(), threadpool_limits(threads):
        yield


def write_table(table: pd.DataFrame, path: Path, record: Mapping) -> None:
    """Write a parquet table atomically, with how it came to be under the key `PROVENANCE` of its metadata.

    The libraries are added to the record, but no time of day, so that the same call writes the same bytes.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = pa.Table.from_pandas(table, preserve_index=False)
    provenance = json.dumps({**record, "versions": list_versions(_DECIDING_LIBRARIES)}, sort_keys=True).encode()
    labelled = {**(content.schema.metadata or {}), PROVENANCE: provenance}
    with atomic_path(path) as temporary:
        pq.write_table(content.replace_schema_metadata(labelled), temporary)


def report_audit(report: AuditReport, path: Path | None = None) -> None:
    """Print an audit, and write its table to ``path`` if one is given."""
    print(describe_audit(report))
    if path:
        with atomic_path(path) as temporary:
            report.table.to_parquet(temporary, index=False)
        print(f"\nThe audit's table is in {path}.")
