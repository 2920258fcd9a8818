"""The ledger: what was decided about each considered pair, on which grounds, and the features it was decided on.

It is written as training goes: one part file a super-batch, ``ledger/part-00012.parquet`` beside ``ledger.parquet``,
and merged into that file at the end with one row group a part. Whoever stops in between can read what is there, and a
merged ledger can be taken apart again where a run goes on from an earlier checkpoint.
"""

import difflib
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from chexstudy.curation.online.decisions import BANDS, CENTRAL, OUTLIER, REASONS, SUPPORT
from chexstudy.errors import StudyError
from chexstudy.runs import Run, artifact_path, forget_artifact, require_whole
from chexstudy.steps import find_step

_WORDS = pa.dictionary(pa.int8(), pa.string())
_SCHEMA = pa.schema(
    {
        "image_id": pa.string(),
        "epoch": pa.int32(),
        "step": pa.int32(),
        "prototype": pa.int32(),
        "distance": pa.float32(),
        "threshold_support": pa.float32(),
        "threshold_outlier": pa.float32(),
        "band": _WORDS,
        "order": pa.int32(),
        "priority": pa.float32(),
        "kept": pa.bool_(),
        "reason": _WORDS,
    }
)
LEDGER_COLUMNS = tuple(_SCHEMA.names)
# Ids come in random order: their minimum and maximum would help no reader and would swell the footer.
_STATISTICS = ["epoch", "step", "prototype", "kept"]
_LIKELY_IDS, _MOST_LIKELY = 1000, 3


def summarise_bands(ledger: pd.DataFrame) -> pd.DataFrame:
    """Pairs and kept pairs by band, in the order central, support, outlier, and mismatched if there are such pairs."""
    summary = ledger.groupby("band", observed=True).agg(pairs=("kept", "size"), kept=("kept", "sum"))
    bands = [BANDS[CENTRAL], BANDS[SUPPORT], BANDS[OUTLIER]]
    summary = summary.reindex([*bands, *summary.index.difference(bands)], fill_value=0)
    return summary.rename_axis("band").reset_index()


def measure_churn(ledger: pd.DataFrame) -> pd.DataFrame:
    """How decisions change from one epoch of curation to the next, over the pairs considered in both.

    Gives one row for each epoch but the first: ``epoch``; ``pairs`` considered in both; ``kept`` in it; ``readmitted``,
    kept now and dropped before, and ``readmitted_share`` of those kept now; ``newly_dropped``, dropped now and kept
    before, and ``newly_dropped_share`` of those kept before; ``differ``, the share of the pairs kept in either epoch
    that were not kept in both (one minus the Jaccard index).
    """
    names = ["epoch", "pairs", "kept", "readmitted", "readmitted_share", "newly_dropped", "newly_dropped_share"]
    rows, decided = [], ledger.pivot(index="image_id", columns="epoch", values="kept")
    for before, now in pairwise(decided.columns):
        was, kept = decided[[before, now]].dropna().to_numpy(dtype=bool).T
        readmitted, dropped = (kept & ~was).sum(), (was & ~kept).sum()
        with np.errstate(invalid="ignore"):
            shares = readmitted / kept.sum(), dropped / was.sum(), (readmitted + dropped) / (kept | was).sum()
        rows.append((now, len(kept), kept.sum(), readmitted, shares[0], dropped, *shares[1:]))
    return pd.DataFrame(rows, columns=[*names, "differ"])


class LedgerWriter:
    """Writes a ledger super-batch by super-batch, from number ``first`` on.

    A run that starts anew takes away what lay there; one that goes on keeps the parts of the super-batches that its
    checkpoint already knows and drops those beyond, which it is about to decide again. The merged ledger will lie at
    ``final``; the parts lie in a folder of the same name without the suffix.
    """

    def __init__(self, final: str | Path, first: int = 0):
        self.final = Path(final)
        self.folder = self.final.with_suffix("")
        if first:
            check_ledger(self.final, first)
            if self.final.exists():
                with pq.ParquetFile(self.final) as merged:
                    for number in range(min(first, merged.num_row_groups)):
                        if not self._part(number).exists():
                            self._write(number, merged.read_row_group(number))
        # The merged file goes first: as long as it is there, readers take it for the whole.
        forget_artifact(self.final)
        for number, part in _list_parts(self.folder).items():
            if number >= first:
                forget_artifact(part)

    def _part(self, number: int) -> Path:
        return self.folder / f"part-{number:05d}.parquet"

    def _write(self, number: int, table: pa.Table) -> None:
        with artifact_path(self._part(number)) as temporary:
            pq.write_table(table, temporary, row_group_size=len(table), write_statistics=_STATISTICS)

    def write(self, number: int, table: pd.DataFrame) -> None:
        """Write the decisions of one super-batch, `ledger_rows`; one written before under this number is replaced."""
        self._write(number, pa.Table.from_pandas(table[list(LEDGER_COLUMNS)], _SCHEMA, preserve_index=False))

    def finish(self) -> Path:
        """Merge the parts into the final file, one row group a part and one part in memory at a time; remove them."""
        parts = _list_parts(self.folder)
        absent = sorted(set(range(max(parts, default=-1) + 1)) - set(parts))
        if absent:
            raise StudyError(f"{self.folder} lacks the ledger of super-batch {absent[0]}: train the arm again.")
        with (
            artifact_path(self.final) as temporary,
            pq.ParquetWriter(temporary, _SCHEMA, write_statistics=_STATISTICS) as writer,
        ):
            for part in parts.values():
                require_whole(part)
                table = pq.read_table(part, schema=_SCHEMA)
                writer.write_table(table, row_group_size=len(table))
        if self.folder.is_dir():
            forget_artifact(self.folder)
        return self.final


def check_ledger(final: Path, count: int) -> None:
    """Make sure that a ledger holds its first ``count`` super-batches as they were written, merged or in parts."""
    if final.exists():
        require_whole(final)
        return
    parts = _list_parts(final.with_suffix(""))
    for number in range(count):
        if number not in parts:
            raise StudyError(
                f"{final.with_suffix('')} lacks the ledger of super-batch {number}, from which training cannot go on: "
                "remove the arm's folder and train it again."
            )
        require_whole(parts[number])


def _list_parts(folder: Path) -> dict[int, Path]:
    """The finished parts by number, ascending; what a killed process left half written is none."""
    matches = {path: re.fullmatch(r"part-(\d+)\.parquet", path.name) for path in folder.glob("part-*.parquet")}
    return dict(sorted((int(match[1]), path) for path, match in matches.items() if match))


def ledger_path(run: Run, arm: str, seed: int) -> Path:
    """Where the merged ledger of an arm lies or will lie."""
    return run.path(f"pretraining/{arm}/seed{seed}/ledger.parquet")


def read_ledger(
    source: str | Path | Run, arm: str = "curated", seed: int = 0, columns: Sequence[str] | None = None
) -> pd.DataFrame:
    """Read a ledger, by its path or that of an arm of a run: the merged file, or while there is none, the parts so far.

    Rows are in the order in which they were decided; ``band`` and ``reason`` are categories, ordered as `BANDS` and
    `REASONS`.
    """
    path = ledger_path(source, arm, seed) if isinstance(source, Run) else Path(source)
    tables = [part.read(columns=None if columns is None else list(columns)) for part in _open_parts(path)]
    return _to_frame(tables)


def read_super_batches(source: str | Path | Run, image_id: str, arm: str = "curated", seed: int = 0) -> pd.DataFrame:
    """Read the super-batches in which one pair was considered, whole: the pair and those it was decided among.

    Only the ids of the others are looked at, so memory does not grow with the ledger. As `read_ledger`, perhaps without
    rows.
    """
    path = ledger_path(source, arm, seed) if isinstance(source, Run) else Path(source)
    tables, empty = [], None
    for part in _open_parts(path):
        empty = part.schema_arrow.empty_table() if empty is None else empty
        for group in range(part.num_row_groups):
            ids = part.read_row_group(group, columns=["image_id"]).column("image_id")
            if pc.any(pc.equal(ids, image_id)).as_py():
                tables.append(part.read_row_group(group))
    return _to_frame(tables or [empty])


@dataclass(frozen=True)
class ScoredPairs:
    """What a curator saw and decided, row by row."""

    ledger: pd.DataFrame  # one row a decision
    features: np.ndarray  # joint features it was made on ``(decisions, dim)``, float16, perhaps memory-mapped

    def in_last_epoch(self) -> "ScoredPairs":
        """The decisions of the epoch that decided, where there are several."""
        last = self.ledger.epoch == self.ledger.epoch.max()
        # Epochs follow one another, so these are the last rows.
        return ScoredPairs(self.ledger[last].reset_index(drop=True), self.features[-int(last.sum()) :])

    def in_order_of(self, image_ids: Sequence[str]) -> "ScoredPairs":
        """The decisions of the last epoch, one for each of these images, in their order."""
        last = self.in_last_epoch()
        places = pd.Index(last.ledger.image_id).get_indexer(image_ids)
        if len(places) != len(last.ledger) or (places < 0).any():
            raise StudyError(
                f"the ledger holds {len(last.ledger):,} pairs that are not the {len(places):,} training pairs of the "
                "study now: train the arm again."
            )
        return ScoredPairs(last.ledger.iloc[places].reset_index(drop=True), last.features[places])


def read_scored_pairs(run: Run, arm: str, seed: int) -> ScoredPairs:
    features = run.read_array(f"pretraining/{arm}/seed{seed}/features.npy", memory_map=True)
    return ScoredPairs(read_ledger(run, arm, seed), features)


def add_map(run: Run, pairs: pd.DataFrame, arm: str, seed: int) -> pd.DataFrame:
    """The pairs with their places ``x`` and ``y`` on the map of an arm, where one was fitted."""
    name = f"pretraining/{arm}/seed{seed}/map.parquet"
    return pairs.merge(run.read_table(name), on="image_id") if run.has(name) else pairs


def find_likely_ids(image_id: str, known: Sequence[str]) -> list[str]:
    """The known ids that someone who typed ``image_id`` may have meant, the likeliest first.

    Those that end in what was typed come first (the source was left out), then those spelled alike among the
    neighbours in alphabetical order, which keeps the search short among millions.
    """
    ordered = sorted(set(known))
    ends = [one for one in ordered if one.endswith(image_id)] if image_id else []
    place = bisect_left(ordered, image_id)
    near = ordered[max(0, place - _LIKELY_IDS) : place + _LIKELY_IDS]
    alike = difflib.get_close_matches(image_id, near, n=_MOST_LIKELY)
    return list(dict.fromkeys([*ends[:_MOST_LIKELY], *alike]))[:_MOST_LIKELY]


def _open_parts(path: Path) -> Iterator[pq.ParquetFile]:
    """The merged file, else the parts, opened one after the other."""
    paths = [path] if path.exists() else list(_list_parts(path.with_suffix("")).values())
    if not paths:
        raise StudyError(f"there is no ledger at {path}: only arms that curate with prototypes write one.")
    for one in paths:
        require_whole(one)
        try:
            part = pq.ParquetFile(one)
        except (OSError, ValueError):
            raise StudyError(
                f"{one} cannot be read as a ledger: run {find_step('pretraining/*/ledger.parquet')} again."
            ) from None
        with part:
            yield part


def _to_frame(tables: list[pa.Table]) -> pd.DataFrame:
    frame = pa.concat_tables(tables).unify_dictionaries().to_pandas()
    for column, words in (("band", BANDS), ("reason", REASONS)):
        if column in frame:
            values = frame[column].astype("category")
            others = [word for word in values.cat.categories if word not in words]
            frame[column] = values.cat.set_categories([*words, *sorted(others)])
    return frame
