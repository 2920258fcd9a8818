"""The committed gallery: the study's figures, each with the paper figure it regenerates and how to make it again."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from chexstudy import paths
from chexstudy.errors import StudyError
from chexstudy.runs import Run, atomic_path
from chexstudy.steps import find_step

_KINDS = (".png", ".pdf", ".json")


@dataclass(frozen=True)
class Entry:
    """What is known of a figure beside its numbers."""

    title: str  # heading in the gallery
    regenerates: str  # the published figure


# The order of the gallery is that of the story.
CATALOGUE = {
    "radiographs": Entry("The cohort in pictures", "no published figure; what the data look like"),
    "composition": Entry("Cohort composition", "CheXficient, table of 13 sources and report lengths"),
    "embedding": Entry("The joint space before curation", "CheXficient, density of the feature space"),
    "framework": Entry("Framework and prototype regions", "CheXficient Fig. 1a, b"),
    "prototype_evolution": Entry("Prototypes over training", "CheXficient, logged by its public code"),
    "prototype_cards": Entry("Prototype cards", "no published figure; what each prototype stands for"),
    "prototype_dynamics": Entry("Usage, spread and churn of prototypes", "CheXficient, logged by its public code"),
    "training_dynamics": Entry("Training dynamics", "CheXficient, logged by its public code"),
    "budgets": Entry("Several budgets", "CheXficient, data and compute saved"),
    "compute": Entry("Performance against data and compute", "CheXficient, data and compute saved"),
    "zero_shot": Entry("Zero-shot classification", "CheXficient, zero-shot AUROC by data set"),
    "spectrum": Entry("Against whom, and asked how", "no published figure; negatives and prompts of zero-shot"),
    "calibration": Entry("Calibration", "no published figure; scores as probabilities, before and after repair"),
    "retrieval": Entry("Retrieval", "CheXficient, cross-modal retrieval recall"),
    "density": Entry("Density in the feature space", "CheXficient, density of the curated subset"),
    "audit": Entry("Who is dropped", "no published figure; the audit of the curator"),
    "long_tail": Entry("The long tail", "CheXficient, per-finding gain by prevalence"),
    "subgroups": Entry("Subgroups", "no published figure; gaps by sex, age, view and source"),
    "curator_ablation": Entry("Ablation of the curator", "CheXficient, proposed (C13)"),
    "ratio_law": Entry("The share kept and its law", "CheXficient, the published 22.7 %"),
    "trained_ablation": Entry("Trained variants of the curator", "CheXficient, proposed (C13)"),
    "method_comparison": Entry(
        "Every method of curation", "no published figure; the methods at the same data and compute"
    ),
    "heads": Entry("Heads by prevalence", "CheXFound, CXR-LT 2024 (X2)"),
    "glori_gains": Entry("What GLoRI gains by finding", "CheXFound, per-disease results"),
    "label_efficiency": Entry("Label efficiency of adaptation", "CheXFound X4; CheXficient, 10 % of the labels (C5)"),
    "glori_parts": Entry("Components of GLoRI", "CheXFound, Table 11 (X8)"),
    "probe_variants": Entry("Probes, losses and fine-tuning", "CheXFound, proposed (X12)"),
    "outcomes": Entry("Outcomes", "CheXFound, mortality and cardiovascular risk (X5, X6)"),
    "attention": Entry("What GLoRI looks at", "CheXFound, attention maps and confidences (X1)"),
    "pointing_test": Entry("Whether attention lies on the finding", "no published figure; pointing game, natural test"),
    "pointing_test_enriched": Entry(
        "Whether attention lies on the finding, enriched test", "no published figure; pointing game"
    ),
    "label_prevalence": Entry("Findings to label", "How many samples to label, 21 classes (T1)"),
    "learning_curves": Entry("Learning curves", "How many samples to label (L1)"),
    "curve_families": Entry("Families of curves", "How many samples to label (L2)"),
    "label_forecasts": Entry("Forecasts from few labels", "How many samples to label (L3)"),
    "labels_needed": Entry("Labels needed", "How many samples to label (L4)"),
    "early_slope": Entry("Early slope and plateau", "How many samples to label (L5)"),
}


def publish_figures(run: Run, folder: Path | None = None) -> list[Path]:
    """Copy a study's figures (PNG, PDF, JSON) into the gallery and write its page.

    Args:
        run: the study.
        folder: the gallery; the committed ``figures/`` if not given.

    Returns:
        Paths of the copied PNGs.
    """
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
    """Write the gallery's ``README.md``: for each figure its picture, caption, published counterpart and notebook.

    Args:
        folder: where the figures lie; the committed ``figures/`` if not given.

    Returns:
        Path of the page.
    """
    folder = folder or paths.FIGURES
    there = {path.stem for path in folder.glob("*.json")}
    if not there:
        raise StudyError(f"there are no figures in {folder}: run the notebooks, then publish their figures.")
    names = [name for name in CATALOGUE if name in there] + sorted(there - set(CATALOGUE))
    lines = [
        "# Figures",
        "",
        "Each figure as PNG (300 dpi) and PDF; its caption and the numbers plotted are in the JSON of the same name.",
        "Made by `make study budgets curators adapt`, never by hand. What a published figure shows for its cohort,",
        "ours shows for the cohort named in the captions: the same question, not the same numbers.",
        "",
        "| figure | regenerates | made by |",
        "|---|---|---|",
    ]
    entries = {name: CATALOGUE.get(name, Entry(name.replace("_", " ").capitalize(), "-")) for name in names}
    for name, entry in entries.items():
        anchor = entry.title.lower().replace(",", "").replace(" ", "-")
        lines.append(f"| [{entry.title}](#{anchor}) | {entry.regenerates} | {find_step(f'figures/{name}', '-')} |")
    for name, entry in entries.items():
        caption = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))["caption"]
        lines += ["", f"## {entry.title}", "", f"![{entry.title}]({name}.png)", "", caption, ""]
        lines.append(
            f"Regenerates: {entry.regenerates}. Notebook: {find_step(f'figures/{name}', '-')}. "
            f"[PDF]({name}.pdf) · [numbers]({name}.json)"
        )
    with atomic_path(folder / "README.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "README.md"
