"""Executed notebooks as they can be shown to others: no place, user or machine, and no name of a patient's image.

Notebooks of the study print neither. What is left comes from elsewhere: papermill's record, typed parameters, warnings
and tracebacks of libraries, and tables that someone looks at in a cell of their own.
"""

import json
import os
import re
import site
import sys
import sysconfig
from bisect import bisect_left
from pathlib import Path

import pandas as pd

from chexstudy import paths
from chexstudy.pseudonyms import show_image_ids
from chexstudy.runs import Run, atomic_path

# A path begins a word; the colours of a traceback, which end in a letter, may stand before it.
_PATH = re.compile(r"(^|[^\w.:/~<>\\*+})\]-]|\x1b\[[\d;]*m)(/[\w.@+~-][^\s\"'`<>|:;,(){}\[\]\\\x1b]*)")
_ELLIPSIS = "…"


def clean_notebook(path: Path, run: Run) -> None:
    """Rewrite an executed notebook of a study so that it can be shown; a file cut off is left as it is.

    Paths are written from the study's home, the checkout, the package folder or the user's home on; of other places,
    only the last name stays, and nothing of what lies below a parameter ``data_root``, where folders may be called
    after patients. Official names of images become pseudonyms (`chexstudy.pseudonyms`), identifiers of patients and
    studies are left out. Pictures are not looked into.
    """
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    papermill = notebook["metadata"].get("papermill", {})
    for name in ("input_path", "output_path"):
        papermill.pop(name, None)
    hidden = _Hidden(run, str((papermill.get("parameters") or {}).get("data_root") or ""))
    notebook["metadata"] = _clean(notebook["metadata"], hidden)
    for cell in notebook["cells"]:
        # The code itself is that of the checkout, but for what was typed.
        typed = "injected-parameters" in cell["metadata"].get("tags", [])
        cell |= {part: _clean(cell[part], hidden) for part in ("outputs", *["source"] * typed) if part in cell}
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def hide_names(run: Run, text: str) -> str:
    """A text without the names of a study's images, patients and examinations; nothing of a drawn study is hidden."""
    return _Hidden(run).names(text)


def _clean(value: object, hidden: "_Hidden") -> object:
    if isinstance(value, dict):
        return {name: one if name.startswith("image/") else _clean(one, hidden) for name, one in value.items()}
    if isinstance(value, list):
        return [_clean(one, hidden) for one in value]
    return hidden.names(hidden.places(value)) if isinstance(value, str) else value


class _Hidden:
    """What is written instead of places and names of a study, whose images lie in ``data_root``, as it was typed."""

    def __init__(self, run: Run, data_root: str = ""):
        self._run = run
        self._folders = {run.path("images"): "images"}
        if data_root:
            self._folders[paths.resolve_user_path(data_root)] = "data_root"
        self._known: dict[str, str] | None = None
        self._sources: re.Pattern | None = None

    def places(self, text: str) -> str:
        if "/" not in text:
            return text
        return _PATH.sub(lambda found: found[1] + self._place(found[2]), text)

    def _place(self, written: str) -> str:
        path = Path(os.path.normpath(written))
        if len(path.parts) < 3 and not path.exists():
            # A fraction or a unit.
            return written
        for folder, name in self._folders.items():
            if path != folder and path.is_relative_to(folder):
                return f"{name}/{_ELLIPSIS}"
        for root, name in _roots():
            if path.is_relative_to(root):
                return str(name / path.relative_to(root))
        return f"{_ELLIPSIS}/{path.name}"

    def names(self, text: str) -> str:
        if self._known is None:
            self._read_names()
        if self._sources is None:
            return text
        parts, last = [], 0
        for found in self._sources.finditer(text):
            if found.start() < last:
                continue
            name = self._name_at(text, found.start())
            if name:
                parts += [text[last : found.start()], self._known.get(name, found[0] + _ELLIPSIS)]
                last = found.start() + len(name)
        return "".join([*parts, text[last:]])

    def _name_at(self, text: str, start: int) -> str:
        """The longest name of the study that stands here; also the beginning of one that a table cut off."""
        for length in self._lengths:
            name, after = text[start : start + length], text[start + length : start + length + 1]
            if name in self._known and not (after.isalnum() or after in ("_", "/")):
                return name
        cut = text.find("...", start, start + self._lengths[0] + 3)
        beginning = text[start:cut] if cut > 0 else ""
        place = bisect_left(self._ordered, beginning) if beginning else len(self._ordered)
        if place < len(self._ordered) and self._ordered[place].startswith(beginning):
            return beginning
        return ""

    def _read_names(self) -> None:
        self._known = {}
        files = [self._run.path(name) for name in ("cohort.parquet", "quarantine.parquet") if self._run.has(name)]
        try:
            tables = [pd.read_parquet(file) for file in files]
        except (OSError, ValueError):
            # A damaged table is told by whoever needs it.
            return
        images = list(dict.fromkeys(image_id for table in tables for image_id in table.image_id))
        shown = dict(zip(images, show_image_ids(self._run, images), strict=True))
        if any(name == pseudonym for name, pseudonym in shown.items()):
            return
        for table in tables:
            for column in {"patient_id", "study_id"} & set(table.columns):
                names = table[column].unique()
                self._known |= {name: f"{name.split('/', 1)[0]}/{_ELLIPSIS}" for name in names}
        self._known |= shown
        sources = sorted({name.split("/", 1)[0] for name in self._known})
        self._lengths = sorted({len(name) for name in self._known}, reverse=True)
        self._ordered = sorted(self._known)
        if sources:
            self._sources = re.compile(rf"(?<![\w/.-])(?:{'|'.join(map(re.escape, sources))})/")


def _roots() -> list[tuple[Path, Path]]:
    """Folders that paths are written from, the innermost first, with what stands for each."""
    packages = {Path(place) for place in (*site.getsitepackages(), sysconfig.get_path("purelib"))}
    roots = {
        paths.home(): Path(),
        paths.REPOSITORY: Path(),
        **dict.fromkeys(packages, Path("site-packages")),
        Path(sysconfig.get_path("stdlib")): Path(f"python{sys.version_info.major}.{sys.version_info.minor}"),
        Path.home(): Path("~"),
    }
    return sorted(roots.items(), key=lambda root: len(root[0].parts), reverse=True)
