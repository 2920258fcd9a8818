"""The ledger on disk: written part by part, readable when killed, the same bytes when resumed."""

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from chexstudy.curation.online.decisions import BANDS, REASONS
from chexstudy.curation.records.ledger import (
    LEDGER_COLUMNS,
    LedgerWriter,
    ScoredPairs,
    find_likely_ids,
    read_ledger,
    read_super_batches,
    summarise_bands,
)
from chexstudy.errors import StudyError
from chexstudy.runs import Run


def make_part(number, pairs=5, ids=None):
    rng = np.random.default_rng(number)
    return pd.DataFrame(
        {
            "image_id": ids or [f"made/{number}-{i}" for i in range(pairs)],
            "epoch": number // 3,
            "step": 100 + number,
            "prototype": rng.integers(0, 4, pairs),
            "distance": rng.random(pairs).astype(np.float32),
            "threshold_support": np.float32(0.5),
            "threshold_outlier": np.float32(0.9),
            "band": np.asarray(BANDS)[rng.integers(0, 3, pairs)],
            "order": rng.integers(-1, 3, pairs),
            "priority": np.full(pairs, np.nan, np.float32),
            "kept": rng.random(pairs) < 0.5,
            "reason": np.asarray(REASONS)[rng.integers(0, 12, pairs)],
        }
    )


def write_parts(path, numbers, first=0):
    writer = LedgerWriter(path, first)
    for number in numbers:
        writer.write(number, make_part(number))
    return writer


def assert_same_rows(ledger, numbers):
    expected = pd.concat([make_part(number) for number in numbers], ignore_index=True)
    assert tuple(ledger.columns) == LEDGER_COLUMNS
    for column in LEDGER_COLUMNS:
        assert ledger[column].astype(expected[column].dtype).equals(expected[column]), column


def test_parts_and_the_merged_ledger_hold_the_same_rows_in_the_same_order(tmp_path):
    path = tmp_path / "arm" / "ledger.parquet"
    writer = write_parts(path, range(12))
    assert not path.exists()
    assert (tmp_path / "arm" / "ledger" / "part-00011.parquet").is_file()
    parts = read_ledger(path)
    assert_same_rows(parts, range(12))
    assert writer.finish() == path
    assert not (tmp_path / "arm" / "ledger").exists()
    pd.testing.assert_frame_equal(read_ledger(path), parts)
    merged = pq.ParquetFile(path)
    assert merged.num_row_groups == 12, "one row group a part"
    assert merged.metadata.row_group(3).num_rows == 5


def test_types_are_tight_and_plain_readers_see_words(tmp_path):
    path = write_parts(tmp_path / "ledger.parquet", range(2)).finish()
    ledger = pd.read_parquet(path)
    assert ledger.distance.dtype == np.float32
    assert ledger.step.dtype == np.int32
    assert ledger.kept.dtype == bool
    assert isinstance(ledger.band.dtype, pd.CategoricalDtype)
    assert set(ledger.reason) <= set(REASONS)
    assert list(read_ledger(path).band.cat.categories) == list(BANDS)
    assert summarise_bands(read_ledger(path)).pairs.sum() == 10


def test_a_killed_run_leaves_parts_that_can_be_read_and_half_written_ones_are_none(tmp_path):
    path = tmp_path / "ledger.parquet"
    write_parts(path, range(4))
    (tmp_path / "ledger" / ".part-00004.host.1.partial.parquet").write_bytes(b"half")
    assert_same_rows(read_ledger(path), range(4))


def test_a_resumed_run_gives_the_bytes_of_one_that_was_never_stopped(tmp_path):
    straight = write_parts(tmp_path / "straight" / "ledger.parquet", range(7)).finish()
    path = tmp_path / "resumed" / "ledger.parquet"
    write_parts(path, range(6))
    (path.parent / "ledger" / "part-00009.parquet").write_bytes(b"of an older, longer run")
    resumed = write_parts(path, range(4, 7), first=4)
    assert_same_rows(read_ledger(path), range(7))
    assert resumed.finish().read_bytes() == straight.read_bytes()


def test_a_finished_ledger_is_taken_apart_where_a_run_goes_on_from_before_its_end(tmp_path):
    path = write_parts(tmp_path / "ledger.parquet", range(6)).finish()
    whole = path.read_bytes()
    writer = LedgerWriter(path, first=4)
    assert not path.exists(), "readers must not take the old one for the whole"
    assert_same_rows(read_ledger(path), range(4))
    for number in (4, 5):
        writer.write(number, make_part(number))
    assert writer.finish().read_bytes() == whole


def test_killed_while_removing_merged_parts(tmp_path):
    path = write_parts(tmp_path / "ledger.parquet", range(5)).finish()
    write_parts(tmp_path / "other.parquet", range(5))
    (tmp_path / "ledger").mkdir()
    (tmp_path / "other" / "part-00003.parquet").rename(tmp_path / "ledger" / "part-00003.parquet")
    whole = path.read_bytes()
    assert_same_rows(read_ledger(path), range(5))
    assert LedgerWriter(path, first=5).finish().read_bytes() == whole


def test_a_run_that_starts_anew_takes_away_what_lay_there(tmp_path):
    path = write_parts(tmp_path / "ledger.parquet", range(5)).finish()
    write_parts(path, [0])
    assert_same_rows(read_ledger(path), [0])


def test_gaps_are_refused(tmp_path):
    path = tmp_path / "ledger.parquet"
    writer = write_parts(path, (0, 2))
    with pytest.raises(StudyError, match="super-batch 1"):
        writer.finish()
    assert not path.exists()
    with pytest.raises(StudyError, match="super-batch 1"):
        LedgerWriter(path, first=3)
    assert_same_rows(read_ledger(path), (0, 2))


def test_a_full_disk_is_one_sentence_and_leaves_the_parts_before(tmp_path, full_disk):
    writer = write_parts(tmp_path / "ledger.parquet", range(2))
    with full_disk(200), pytest.raises(StudyError, match="free some space"):
        writer.write(2, make_part(2))
    assert_same_rows(read_ledger(tmp_path / "ledger.parquet"), range(2))


def test_reading_by_run_arm_and_seed(home):
    run = Run("tiny")
    write_parts(run.path("pretraining/curated/seed1/ledger.parquet"), range(2))
    assert_same_rows(read_ledger(run, "curated", 1), range(2))
    assert list(read_ledger(run, "curated", 1, columns=["step", "kept"]).columns) == ["step", "kept"]
    with pytest.raises(StudyError, match="no ledger"):
        read_ledger(run, "full", 1)


@pytest.mark.parametrize("finished", [False, True])
def test_only_the_super_batches_of_a_pair_are_read(tmp_path, finished):
    path = tmp_path / "ledger.parquet"
    writer = LedgerWriter(path)
    for number in range(6):
        ids = [f"made/{number % 3}-{i}" for i in range(5)]
        writer.write(number, make_part(number, ids=ids))
    if finished:
        writer.finish()
    around = read_super_batches(path, "made/1-3")
    assert sorted(set(around.step)) == [101, 104]
    assert len(around) == 10
    assert (around.image_id == "made/1-3").sum() == 2
    nothing = read_super_batches(path, "made/9")
    assert nothing.empty
    assert tuple(nothing.columns) == LEDGER_COLUMNS


def test_ledgers_with_other_words_and_columns_can_still_be_read(tmp_path):
    path = tmp_path / "ledger.parquet"
    table = make_part(0).drop(columns="priority").assign(reason="kept: by an older rule")
    table.to_parquet(path, index=False)
    ledger = read_ledger(path)
    assert set(ledger.reason) == {"kept: by an older rule"}
    assert "priority" not in ledger
    assert list(ledger.image_id) == list(table.image_id)


def test_likely_ids():
    known = [f"phantom/{i:06d}" for i in range(5000)]
    assert find_likely_ids("000123", known)[0] == "phantom/000123"
    assert find_likely_ids("phantom/000123x", known)[0] == "phantom/000123"
    assert find_likely_ids("phantm/000321", known)[0] == "phantom/000321"
    assert find_likely_ids("zzz", known) == []


def test_decisions_and_features_come_in_the_order_asked_for():
    ledger = pd.DataFrame({"image_id": list("abccab"), "epoch": [0, 0, 0, 1, 1, 1], "kept": [True] * 3 + [False] * 3})
    scored = ScoredPairs(ledger, np.arange(6, dtype=np.float16)[:, None])
    assert scored.in_last_epoch().features[:, 0].tolist() == [3, 4, 5]
    ordered = scored.in_order_of(["b", "c", "a"])
    assert ordered.ledger.image_id.tolist() == ["b", "c", "a"]
    assert ordered.features[:, 0].tolist() == [5, 3, 4]
    assert not ordered.ledger.kept.any()
    for others in (["b", "c"], ["b", "c", "d"]):
        with pytest.raises(StudyError, match="train the arm again"):
            scored.in_order_of(others)
