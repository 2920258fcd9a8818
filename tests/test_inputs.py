import numpy as np
import pandas as pd
import pytest

from chexstudy.curation.embeddings import inputs
from chexstudy.curation.embeddings.inputs import (
    allocate_features,
    normalise_rows,
    open_embeddings,
    read_image_ids,
    read_losses,
    read_matching_table,
)
from chexstudy.errors import StudyError

IDS = np.array([f"x/{number}" for number in range(40)], dtype=object)


def draw(rows=40, dim=5, dtype=np.float32):
    return np.random.default_rng(0).normal(size=(rows, dim)).astype(dtype)


def normalise(embeddings, **options):
    out = np.full(embeddings.shape, -7, np.float32)
    normalise_rows(embeddings, "E.npy", out, **options)
    return out


def save(path, array):
    np.save(path, array)
    return path


# --- normalising -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_every_floating_type_is_read_from_a_file_and_brought_to_unit_norm(tmp_path, dtype):
    stored = draw(dtype=dtype)
    opened = open_embeddings(save(tmp_path / "E.npy", stored))
    assert isinstance(opened, np.memmap), "mapped and not loaded"
    rows = normalise(opened)
    exact = stored.astype(np.float64)
    np.testing.assert_allclose(rows, exact / np.linalg.norm(exact, axis=1, keepdims=True), rtol=1e-6)


def test_a_length_is_that_of_every_row_and_blocks_do_not_show(monkeypatch):
    whole = normalise(draw(), length=0.5**0.5)
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1) ** 2, 0.5, rtol=1e-6)
    monkeypatch.setattr(inputs, "_BLOCK_NUMBERS", 15)
    np.testing.assert_array_equal(normalise(draw(), length=0.5**0.5), whole)


def test_columns_stored_first_are_read_the_same(tmp_path):
    stored = np.asfortranarray(draw())
    np.testing.assert_array_equal(normalise(open_embeddings(save(tmp_path / "E.npy", stored))), normalise(draw()))


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_huge_and_tiny_numbers_keep_their_direction(scale):
    embeddings = np.array([[3.0, 4.0], [4.0, 3.0]]) * scale
    np.testing.assert_allclose(normalise(embeddings), [[0.6, 0.8], [0.8, 0.6]], rtol=1e-6)


def test_rows_without_a_direction_are_counted_over_all_blocks_and_the_first_is_named(monkeypatch):
    monkeypatch.setattr(inputs, "_BLOCK_NUMBERS", 15)
    for value in (np.nan, np.inf, -np.inf):
        embeddings = draw()
        embeddings[[7, 20, 39], [0, 3, 4]] = value
        with pytest.raises(StudyError, match=r"^E.npy holds NaN or infinite values in 3 rows, the first is row 7"):
            normalise(embeddings)
    embeddings = draw()
    embeddings[11] = 0
    with pytest.raises(StudyError, match=r"^E.npy holds nothing but zeros in 1 row, the first is row 11: "):
        normalise(embeddings)


@pytest.mark.parametrize("factor", [np.ones(40), np.linspace(1, 9, 40)], ids=["equal", "of different length"])
def test_rows_of_one_direction_leave_nothing_to_choose_by(factor):
    embeddings = np.tile(draw(1), (40, 1)) * factor[:, None].astype(np.float32)
    with pytest.raises(StudyError, match=r"^all 40 rows of E.npy have the same direction: there is nothing to choose"):
        normalise(embeddings)
    embeddings[39, 0] += 1
    normalise(embeddings)
    np.testing.assert_allclose(normalise(np.array([[0.0, 2.0]])), [[0, 1]])


def test_features_too_large_for_memory_lie_on_disk_and_leave_nothing_behind(monkeypatch, tmp_path):
    monkeypatch.setattr(inputs, "_largest_in_memory", lambda: 40 * 5 * 4 - 1)
    on_disk = allocate_features(40, 5, tmp_path)
    assert isinstance(on_disk, np.memmap)
    normalise_rows(draw(), "E.npy", on_disk)
    np.testing.assert_array_equal(on_disk, normalise(draw()))
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(inputs, "_largest_in_memory", lambda: 40 * 5 * 4)
    assert not isinstance(allocate_features(40, 5, tmp_path), np.memmap)
    with pytest.raises(StudyError, match=r"^the features need 4000000000.0 GB in .* meanwhile: free some space there"):
        allocate_features(10**9, 10**9, tmp_path)


# --- embedding files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "complaint"),
    [
        (np.ones((3, 2), np.int64), "holds int64 values: embeddings must be float16, float32 or float64"),
        (np.ones((3, 2), bool), "holds bool values: embeddings must be"),
        (np.ones((3, 2), complex), "holds complex128 values: embeddings must be"),
        (np.array([["a", "b"]]), "holds texts: embeddings must be"),
        (np.array([[{}, None]], dtype=object), "holds objects: embeddings must be"),
        (np.ones(3), r"has the shape \(3,\): embeddings are one row an image"),
        (np.ones((3, 2, 2)), r"has the shape \(3, 2, 2\): embeddings are one row an image"),
        (np.ones((0, 4)), r"is empty, its shape is \(0, 4\)"),
        (np.ones((4, 0)), r"is empty, its shape is \(4, 0\)"),
    ],
    ids=lambda value: "" if isinstance(value, str) else f"{value.dtype.kind}{value.shape}",
)
def test_what_cannot_be_embeddings_is_refused(tmp_path, array, complaint):
    np.save(tmp_path / "E.npy", array, allow_pickle=True)
    with pytest.raises(StudyError, match=complaint):
        open_embeddings(tmp_path / "E.npy")


@pytest.mark.parametrize(
    ("kept", "complaint"),
    [
        (0, "is not an .npy file"),
        (60, "is not an .npy file"),
        (128, "is cut short: it has 128 of 928 bytes"),
        (927, "is cut short: it has 927 of 928 bytes"),
    ],
)
def test_a_file_cut_short_is_refused_wherever_it_ends(tmp_path, kept, complaint):
    path = save(tmp_path / "E.npy", draw())
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(StudyError, match=complaint):
        open_embeddings(path)


def test_an_archive_a_text_or_a_header_that_claims_fewer_rows_than_none_is_refused(tmp_path):
    np.savez(tmp_path / "E.npz", draw())
    (tmp_path / "E.csv").write_text("0.1,0.2\n" * 50)
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (-5, 10), }".ljust(117) + b"\n"
    (tmp_path / "E.npy").write_bytes(b"\x93NUMPY\x01\x00v\x00" + header + bytes(100))
    no_file = "is not an .npy file: write it with numpy.save"
    for name, said in (("E.npz", no_file), ("E.csv", no_file), ("E.npy", r"is empty, its shape is \(-5, 10\)")):
        with pytest.raises(StudyError, match=said):
            open_embeddings(tmp_path / name)


# --- ids and tables --------------------------------------------------------------------------------------------------


def write(path, **columns):
    pd.DataFrame(columns).to_parquet(path)
    return path


@pytest.mark.parametrize(
    "column", [["b", "a"], [7, 3], pd.Categorical(["b", "a"]), pd.array([7, 3], dtype="Int64")], ids=str
)
def test_ids_are_texts_or_whole_numbers_and_keep_their_order(tmp_path, column):
    read = read_image_ids(write(tmp_path / "ids.parquet", other=[0, 1], image_id=column))
    assert list(read) == list(column)


@pytest.mark.parametrize(
    ("column", "complaint"),
    [
        (["a", "b", "a", "b", "a"], "ids holds 3 image_ids more than once, the first in row 0 and row 2"),
        ([4, 5, 5], "ids holds 1 image_id more than once, the first in row 1 and row 2"),
        (["a", None, None], "ids has no image_id in 2 rows, the first is row 1"),
        ([1.5, 2.5], "ids holds image_id of kind floating: they must be texts or whole numbers"),
        ([True, False], "kind boolean"),
        ([], "ids holds no rows"),
    ],
    ids=str,
)
def test_bad_ids_are_refused(tmp_path, column, complaint):
    with pytest.raises(StudyError, match=complaint.replace("ids ", "ids.parquet ", 1)):
        read_image_ids(write(tmp_path / "ids.parquet", image_id=column))


def test_a_file_that_is_no_parquet_and_a_cut_one_are_refused(tmp_path):
    path = write(tmp_path / "ids.parquet", image_id=list("abc"))
    whole = path.read_bytes()
    for content in (b"", b"image_id\na\n", whole[:40], whole[:-30]):
        path.write_bytes(content)
        with pytest.raises(StudyError, match=r"ids.parquet cannot be read as a table"):
            read_image_ids(path)
    with pytest.raises(StudyError, match=r"^there is no table .*none.parquet: check its name"):
        read_image_ids(tmp_path / "none.parquet")


def test_losses_follow_the_ids_and_not_their_own_order(tmp_path):
    path = write(tmp_path / "L.parquet", image_id=["c", "a", "z", "b"], loss=[3, 1, 26, 2], note=list("wxyz"))
    losses = read_losses(path, np.array(["a", "b", "c"], dtype=object))
    assert list(losses) == ["loss"]
    assert losses["loss"].tolist() == [1, 2, 3]
    write(path, image_id=["b", "a"], loss=[2.0, 1.0], reference_loss=[0.5, 0.25])
    assert read_losses(path, np.array(["a", "b"], dtype=object))["reference_loss"].tolist() == [0.25, 0.5]


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        ({"image_id": ["a"], "loss": [1.0]}, "has no row for 1 of the 2 embedded images, the first is that of row 1"),
        ({"image_id": ["a", "b", "a"], "loss": [1.0, 2, 3]}, "1 image_id more than once, the first in row 0 and row 2"),
        ({"image_id": ["a", "b"], "loss": [1.0, np.nan]}, "'loss' of .* no finite number in 1 row, the first is row 1"),
        ({"image_id": ["a", "b"], "loss": [np.inf, 1.0]}, "no finite number in 1 row, the first is row 0"),
        ({"image_id": ["a", "b"], "loss": ["1", "2"]}, "holds str, not numbers"),
        ({"image_id": ["a", "b"], "score": [1, 2]}, "has no column 'loss'"),
    ],
)
def test_bad_losses_are_refused(tmp_path, columns, complaint):
    with pytest.raises(StudyError, match=complaint):
        read_losses(write(tmp_path / "L.parquet", **columns), np.array(["a", "b"], dtype=object))


def test_a_whole_table_is_put_into_the_order_of_the_ids(tmp_path):
    path = write(tmp_path / "T.parquet", image_id=[3, 1, 2], sex=list("MFF"), age=[60, 40, 50])
    table = read_matching_table(path, np.array([1, 3]), optional=None)
    assert table.to_dict("list") == {"image_id": [1, 3], "sex": ["F", "M"], "age": [40, 60]}
