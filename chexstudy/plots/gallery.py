"""The committed gallery: the study's figures, each with the paper figure it regenerates and how to make it again."""

import json
import shutil
from pathlib import Path

from chexstudy import paths
from chexstudy.errors import StudyError
from chexstudy.plots.figures import CATALOGUE, Entry
from chexstudy.runs import Run, atomic_path
from chexstudy.steps import find_step

_KINDS = (".png", ".pdf", ".json")


def publish_figures(run: Run, folder: Path | None = None) -> list[Path]:
    """Copy a study's figures (PNG, PDF, JSON) into a gallery, the committed one if not given; gives the PNGs."""
    folder = folder or paths.FIGURES
    names = sorted(path.stem for path in run.path("figures").glob("*.json"))
    if not names:
        raise StudyError(f"study {run.study!r} has no figures yet: run the notebooks first.")
    for name in names:
        for kind in _KINDS:
            source = run.require(f"figures/{name}{kind}")
            with atomic_path(folder / source.name) as temporary:
                shutil.copyfile(source, temporary)
    write_gallery(folder)
    return [folder / f"{name}.png" for name in names]


def write_gallery(folder: Path | None = None) -> Path:
    """Write the gallery's ``README.md``: for each figure its picture, caption, published counterpart and notebook."""
    folder = folder or paths.FIGURES
    there = {path.stem for path in folder.glob("*.json")}
    if not there:
        raise StudyError(f"there are no figures in {folder}: run the notebooks, then publish their figures.")
    names = [name for name in CATALOGUE if name in there] + sorted(there - set(CATALOGUE))
    lines = [
        "# Figures",
        "",
        "Each figure as PNG (300 dpi) and PDF; its caption and the numbers plotted are in the JSON of the same name.",
        "Made by `make study budgets curators adapt tasks regimes ssl`, never by hand. What a published figure shows",
        "for its cohort, ours shows for the cohort named in the captions: the same question, not the same numbers.",
        "",
        "| figure | regenerates | made by |",
        "|---|---|---|",
    ]
    entries = {name: CATALOGUE.get(name, Entry("", name.replace("_", " ").capitalize(), "-")) for name in names}
    for name, entry in entries.items():
        anchor = entry.title.lower().replace(",", "").replace(" ", "-")
        lines.append(f"| [{entry.title}](#{anchor}) | {entry.regenerates} | {find_step(f'figures/{name}', '-')} |")
    for name, entry in entries.items():
        told = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        lines += ["", f"## {entry.title}", "", f"![{entry.title}]({name}.png)", "", told["caption"], ""]
        # Figures of the version before do not say of which study they are.
        study = f" Study: `{told['study']}`." if "study" in told else ""
        lines.append(
            f"Regenerates: {entry.regenerates}. Notebook: {find_step(f'figures/{name}', '-')}.{study} "
            f"[PDF]({name}.pdf) · [numbers]({name}.json)"
        )
    with atomic_path(folder / "README.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "README.md"
