"""Every table is read whole or refused with its line, and no cell of it is shown."""

import gzip
import os

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from chexstudy.errors import StudyError
from chexstudy.inputs.tables import (
    NESTED,
    is_table,
    list_columns,
    name_place,
    read_text_table,
    read_typed_table,
    table_stem,
)

HEADER = "File,Patient,Mass,Report"
ROWS = [f"img{number:02d}.png,P{number // 2},{number % 2},clear lungs" for number in range(8)]


def write(path, text, encoding="utf-8"):
    data = text.encode(encoding) if isinstance(text, str) else text
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def csv(rows=ROWS, header=HEADER, end="\n"):
    return end.join((header, *rows)) + end


def sentence(path, read=read_text_table):
    with pytest.raises(StudyError) as caught:
        read(path)
    said = str(caught.value)
    assert "clear" not in said
    assert "P2" not in said
    return said


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("t.csv", lambda text: text),
        ("t.csv.gz", lambda text: text),
        ("T.TSV", lambda text: text.replace(",", "\t")),
        ("t.csv", lambda text: "\ufeff" + text),
        ("t.csv", lambda text: text.replace("\n", "\r\n")),
        ("t.csv", lambda text: text.replace("\n", "\r")),
        ("t.csv", lambda text: text.rstrip("\n")),
        ("t.csv", lambda text: text.replace("File,Patient", " File ,Patient\u00a0")),
        ("t.csv", lambda text: text + ",,,\n\n"),
        # Some programs end every row with a comma, with or without one in the header.
        ("t.csv", lambda text: text.replace("lungs\n", "lungs,\n")),
        ("t.csv", lambda text: text.replace("lungs\n", "lungs,\n").replace("Report", "Report,")),
    ],
)
def test_texts_of_any_dialect_give_the_same_table(tmp_path, name, change):
    table = read_text_table(write(tmp_path / name, change(csv())))
    assert list(table.columns) == HEADER.split(",")
    assert table.to_numpy().tolist() == [row.split(",") for row in ROWS]
    assert table.index.tolist() == list(range(2, 10))
    assert name_place(table.index, 3) == "line 5"


def test_lines_are_counted_as_in_the_file(tmp_path):
    rows = ['a.png,P0,1,"two\nlines"', "", "b.png,P1,0,one"]
    table = read_text_table(write(tmp_path / "t.csv", csv(rows)))
    assert table.index.tolist() == [2, 5]
    assert table["Report"].tolist() == ["two\nlines", "one"]
    table = read_text_table(write(tmp_path / "t.csv", '"Fi\nle",Mass\na,1\n'))
    assert (list(table.columns), table.index.tolist()) == (["Fi le", "Mass"], [3])


@pytest.mark.parametrize("cell", ['"5"" tube"', '5" tube', "a\\b", '"a, b"'])
def test_quotes_and_backslashes_within_cells_are_read(tmp_path, cell):
    table = read_text_table(write(tmp_path / "t.csv", csv([f"a.png,P0,1,{cell}"])))
    assert table["Report"].item() == {'"5"" tube"': '5" tube', '"a, b"': "a, b"}.get(cell, cell)


def replace(number, row):
    return csv([*ROWS[:number], row, *ROWS[number + 1 :]])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        # A quote that opens and does not close, closes later behind other text, or at the end of another row's cell.
        (replace(3, 'img03.png,P1,1,"small'), "t.csv: the row that begins in line 5 has a quote that is not closed"),
        (replace(3, 'img03.png,P1,1,"small').replace("img06", '"img06'), "begins in line 5 has a quote that is not"),
        (replace(3, 'img03.png,P1,1,"small').replace("P3,1,clear lungs", 'P3,1,clear lungs"'), "line 6 is a row of"),
        (replace(7, "img07.png,P3,1,clear, no mass"), "t.csv: line 9 has 5 cells where the header (line 1) has 4: put"),
        (replace(2, "img02.png,P1,0,clear lungs,"), "t.csv: line 4 has 5 cells where"),
        (replace(2, "img02.png,P1"), "t.csv: line 4 has 2 cells where the header (line 1) has 4: fill the row up."),
        (replace(2, "# a note"), "t.csv: line 4 has 1 cell where the header (line 1) has 4: take lines of comment out"),
        ("# a note\n" + csv(), "t.csv: line 2 has 4 cells where the header (line 1) has 1: take lines of comment out."),
        (csv().replace(",", ";"), "t.csv has semicolons between its cells: write commas there."),
        (csv().replace(",", "\t"), "t.csv has tabs between its cells: write commas there."),
        (csv(header="File,Mass,Mass,Report"), "t.csv has two columns named 'Mass': rename one, or take it out."),
        (csv(header="File,,Mass,Report"), "column 2 of t.csv has no name: name it, or take it out."),
        (replace(3, "img03.png,P1,1," + "a" * 200_000), "begins in line 5 has a cell of more than 131,072 characters"),
        (csv([], ",".join(f"c{n}" for n in range(10_001))), "t.csv has 10,001 columns, and a table can have 10,000"),
        ("", "t.csv is empty: give it a line of column names"),
        (csv().replace("lungs", "lu\0ngs", 1), "holds a NUL character in line 2 and is no text"),
        (csv().encode("utf-16"), "t.csv is not UTF-8 text: save it again as CSV in UTF-8 or as Parquet (see line 1)."),
        (replace(4, "é,,,").encode("latin-1"), "as Parquet (see line 6)."),
    ],
)
def test_what_is_no_table_in_every_row_is_refused_with_its_line(tmp_path, text, said):
    assert said in sentence(write(tmp_path / "t.csv", text))


def test_a_report_of_several_lines_is_no_open_quote(tmp_path):
    report = "FINDINGS: clear, mostly, or so,\nimg, one, two, three\nIMPRESSION: normal, 1, 2, 3"
    rows = [f'img{number}.png,P{number},1,"{report}"' for number in range(4)]
    assert set(read_text_table(write(tmp_path / "t.csv", csv(rows)))["Report"]) == {report}


@pytest.mark.parametrize("head", ["", "Unnamed: 0"])
def test_an_index_that_was_written_along_is_no_column(tmp_path, head):
    numbered = [f"{number * 3},{row}" for number, row in enumerate(ROWS)]
    table = read_text_table(write(tmp_path / "t.csv", csv(numbered, f"{head},{HEADER}")))
    assert list(table.columns) == HEADER.split(",")


def test_only_regular_files_of_known_kinds_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "zero.csv").symlink_to("/dev/zero")
    for name in ("pipe.csv", "zero.csv", "none.csv"):
        assert sentence(tmp_path / name).startswith(f"there is no table {tmp_path / name}: check")
    assert "is neither CSV nor Parquet" in sentence(write(tmp_path / "t.xlsx", "x"))
    assert "cannot be read as a table" in sentence(write(tmp_path / "t.parquet", "x"))
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(csv().encode())[:-9])
    assert "cannot be read as a table" in sentence(tmp_path / "t.csv.gz")
    assert is_table("a.CSV.gz")
    assert not is_table("a.gz")
    assert table_stem(tmp_path / "a.b.csv.gz") == "a.b"


def test_parquet_gives_the_texts_of_a_csv_and_an_index_is_a_column(tmp_path):
    table = pd.DataFrame([row.split(",") for row in ROWS], columns=HEADER.split(","))
    typed = table.assign(Mass=table.Mass.astype(float), Patient=table.Patient.astype("category"))
    for number, one in enumerate((table, typed, typed.set_index("File"), typed.set_index(["File", "Patient"]))):
        one.to_parquet(tmp_path / f"{number}.parquet")
        read = read_text_table(tmp_path / f"{number}.parquet")
        assert read[HEADER.split(",")].to_numpy().tolist() == table.to_numpy().tolist()
        assert name_place(read.index, 3) == "row 3"
    typed[typed.Mass == 1].to_parquet(tmp_path / "some.parquet")
    assert sorted(read_text_table(tmp_path / "some.parquet").columns) == sorted(HEADER.split(","))


def test_numbers_of_parquet_are_written_as_they_are_meant(tmp_path):
    columns = {"whole": [17, None], "long": [2**53 + 1, 1], "share": [0.1, np.nan], "flag": [True, False]}
    columns["t"] = [" ", "x"]
    parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    read = read_text_table(tmp_path / "t.parquet")
    assert read.iloc[0, :4].tolist() == ["17", "9007199254740993", "0.1", "true"]
    assert read.isna().to_numpy().tolist() == [[False, False, False, False, True], [True, False, True, False, False]]


def test_columns_of_lists_are_named_and_left_out(tmp_path):
    parquet.write_table(pa.table({"a": ["x"], "b": [[1, 2]], "c": [{"d": 1}], "e": [b"\xff"]}), tmp_path / "t.parquet")
    table = read_text_table(tmp_path / "t.parquet")
    assert list(table.columns) == ["a"]
    assert table.attrs[NESTED] == ["b", "c", "e"]


def test_a_typed_table_holds_numbers_where_all_cells_are_and_ids_as_they_are_written(tmp_path):
    text = "image_id,patient_id,score,label,note,flag\n007,01,0.5,1,a,True\n008,02,nan,,1,false\n"
    table = read_typed_table(write(tmp_path / "t.csv", text))
    assert table.image_id.tolist() == ["007", "008"]
    assert table.patient_id.tolist() == ["01", "02"]
    assert table.score.tolist()[0] == 0.5
    assert table.score.isna().tolist() == [False, True]
    assert table.label.tolist()[0] == 1
    assert table.note.tolist() == ["a", "1"]
    assert table.flag.tolist() == [1, 0]
    assert list_columns(tmp_path / "t.csv") == ["image_id", "patient_id", "score", "label", "note", "flag"]
    assert list(read_typed_table(tmp_path / "t.csv", ["score", "image_id", "none"]).columns) == ["image_id", "score"]
    pd.DataFrame({"score": np.float32([0.1])}, index=pd.Index(["x"], name="image_id")).to_parquet(
        tmp_path / "t.parquet"
    )
    table = read_typed_table(tmp_path / "t.parquet")
    assert (table.score.dtype, table.image_id.tolist()) == (np.float32, ["x"])
    assert list_columns(tmp_path / "t.parquet") == ["score", "image_id"]
