"""A figure as files: a picture, and its caption with the numbers it shows."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.mathtext import MathTextParser
from matplotlib.text import Text

from chexstudy.errors import StudyError
from chexstudy.plots.style import use_style
from chexstudy.pseudonyms import show_image_ids
from chexstudy.runs import Run, atomic_path

# What belongs to patients stays out of what is published.
_PRIVATE_COLUMNS = {"patient_id", "study_id", "report", "image_path"}


def save_figure(run: Run, figure: Figure, name: str, caption: str, data: pd.DataFrame | None = None) -> Path:
    """Write a figure into ``figures/``: PNG (300 dpi), PDF, JSON of study, caption and numbers; gives the PNG's path.

    The same figure gives the same bytes: neither file holds a date or a version. Images among the numbers (a column
    ``image_id``) are written by their pseudonyms (`chexstudy.pseudonyms`).
    """
    if not name or Path(name).name != name or name.startswith("."):
        raise StudyError(f"a figure's name must be a plain file name such as 'zero_shot', not {name!r}.")
    private = sorted(_PRIVATE_COLUMNS & set(() if data is None else data.columns))
    if private:
        raise StudyError(
            f"the numbers of figure {name} hold the column {private[0]}: leave it out, figures are public."
        )
    if data is not None and "image_id" in data:
        data = data.assign(image_id=show_image_ids(run, data.image_id))
    use_style()
    metadata = {".png": {"Software": None}, ".pdf": {"CreationDate": None, "Creator": None, "Producer": None}}
    for suffix, fields in metadata.items():
        with atomic_path(run.path(f"figures/{name}{suffix}")) as temporary:
            _save(figure, temporary, fields)
        # Solving the layout takes as long as drawing, and its places are the same in all formats.
        figure.set_layout_engine("none")
    record = {"name": name, "study": run.study, "caption": caption, "data": [] if data is None else _records(data)}
    with atomic_path(run.path(f"figures/{name}.json")) as temporary:
        temporary.write_text(_write_record(record), encoding="utf-8")
    return run.path(f"figures/{name}.png")


def _save(figure: Figure, path: Path, metadata: dict) -> None:
    """Save a figure, texts as they are that are no mathematics: a finding may have dollar signs in its name."""
    parser = MathTextParser("path")
    while True:
        try:
            figure.savefig(path, metadata=metadata)
            return
        except ValueError:
            wrong = [text for text in figure.findobj(Text) if text.get_parse_math() and not _is_math(parser, text)]
            if not wrong:
                raise
            for text in wrong:
                text.set_parse_math(False)


def _is_math(parser: MathTextParser, text: Text) -> bool:
    try:
        parser.parse(text.get_text())
    except ValueError:
        return False
    return True


def _write_record(record: dict) -> str:
    """JSON with one mark a line: to be read and compared, and small."""
    head = [
        f" {json.dumps(key)}: {json.dumps(record[key], ensure_ascii=False)}" for key in ("name", "study", "caption")
    ]
    rows = ",\n".join(f"  {json.dumps(row, ensure_ascii=False, separators=(',', ':'))}" for row in record["data"])
    return "{\n" + ",\n".join(head) + ',\n "data": [\n' + rows + "\n ]\n}\n"


def _records(data: pd.DataFrame) -> list[dict]:
    """One dictionary a row; columns of the results table that have no text in any row are left out."""
    told = [name for name in data if not all(isinstance(value, str) and not value for value in data[name])]
    return [{name: _plain(value) for name, value in row.items()} for row in data[told].to_dict("records")]


def _plain(value: object) -> object:
    """A value JSON can hold; numbers to seven digits, which is more than any figure shows."""
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or value is pd.NA or (isinstance(value, float) and not np.isfinite(value)):
        return None
    if isinstance(value, float):
        return float(f"{value:.7g}")
    return value if isinstance(value, bool | int | str) else str(value)
