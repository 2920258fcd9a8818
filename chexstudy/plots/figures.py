"""Every figure of a study by its name: ``figures.zero_shot.show(study, results)``.

A figure is imported when it is first asked for, so that a notebook loads what it draws and no more.
"""

from dataclasses import dataclass
from importlib import import_module

from chexstudy.plots.figure import Figure


@dataclass(frozen=True)
class Entry:
    """What is known of a figure beside its numbers."""

    module: str  # of `chexstudy.plots`, where it is made
    title: str  # heading in the gallery
    regenerates: str  # the published figure


# The order of the gallery is that of the story.
CATALOGUE = {
    "radiographs": Entry("radiographs", "The cohort in pictures", "no published figure; what the data look like"),
    "composition": Entry("composition", "Cohort composition", "CheXficient, table of 13 sources and report lengths"),
    "embedding": Entry("joint_space", "The joint space before curation", "CheXficient, density of the feature space"),
    "framework": Entry("prototypes", "Framework and prototype regions", "CheXficient Fig. 1a, b"),
    "prototype_evolution": Entry("prototypes", "Prototypes over training", "CheXficient, logged by its public code"),
    "prototype_cards": Entry("cards", "Prototype cards", "no published figure; what each prototype stands for"),
    "prototype_dynamics": Entry(
        "dynamics", "Usage, spread and churn of prototypes", "CheXficient, logged by its public code"
    ),
    "training_dynamics": Entry("dynamics", "Training dynamics", "CheXficient, logged by its public code"),
    "budgets": Entry("costs", "Several budgets", "CheXficient, data and compute saved"),
    "compute": Entry("costs", "Performance against data and compute", "CheXficient, data and compute saved"),
    "zero_shot": Entry("image_text", "Zero-shot classification", "CheXficient, zero-shot AUROC by data set"),
    "spectrum": Entry(
        "robustness", "Against whom, and asked how", "no published figure; negatives and prompts of zero-shot"
    ),
    "calibration": Entry(
        "robustness", "Calibration", "no published figure; scores as probabilities, before and after recalibration"
    ),
    "retrieval": Entry("image_text", "Retrieval", "CheXficient, cross-modal retrieval recall"),
    "density": Entry("joint_space", "Density in the feature space", "CheXficient, density of the curated subset"),
    "audit": Entry("audit", "Who is dropped", "no published figure; the audit of the curator"),
    "long_tail": Entry("long_tail", "The long tail", "CheXficient, per-finding gain by prevalence"),
    "subgroups": Entry("subgroups", "Subgroups", "no published figure; gaps by sex, age, view and source"),
    "curator_ablation": Entry("curators", "Ablation of the curator", "CheXficient, proposed (C13)"),
    "ratio_law": Entry("curators", "The share kept and its law", "CheXficient, the published 22.7 %"),
    "trained_ablation": Entry("curators", "Trained variants of the curator", "CheXficient, proposed (C13)"),
    "method_comparison": Entry(
        "curators", "Every method of curation", "no published figure; the methods at the same data and compute"
    ),
    "heads": Entry("adaptation", "Heads by prevalence", "CheXFound, CXR-LT 2024 (X2)"),
    "glori_gains": Entry("adaptation", "What GLoRI gains by finding", "CheXFound, per-disease results"),
    "label_efficiency": Entry(
        "adaptation", "Label efficiency of adaptation", "CheXFound X4; CheXficient, 10 % of the labels (C5)"
    ),
    "glori_parts": Entry("adaptation", "Components of GLoRI", "CheXFound, Table 11 (X8)"),
    "probe_variants": Entry("adaptation", "Probes, losses and fine-tuning", "CheXFound, proposed (X12)"),
    "outcomes": Entry("outcomes", "Outcomes", "CheXFound, mortality and cardiovascular risk (X5, X6)"),
    "attention": Entry("attention", "What GLoRI looks at", "CheXFound, attention maps and confidences (X1)"),
    "pointing_test": Entry(
        "attention", "Whether attention lies on the finding", "no published figure; pointing game, natural test"
    ),
    "pointing_test_enriched": Entry(
        "attention", "Whether attention lies on the finding, enriched test", "no published figure; pointing game"
    ),
    "label_prevalence": Entry("label_budget", "Findings to label", "How many samples to label, 21 classes (T1)"),
    "learning_curves": Entry("label_budget", "Learning curves", "How many samples to label (L1)"),
    "curve_families": Entry("label_budget", "Families of curves", "How many samples to label (L2)"),
    "label_forecasts": Entry("label_budget", "Forecasts from few labels", "How many samples to label (L3)"),
    "labels_needed": Entry("label_budget", "Labels needed", "How many samples to label (L4)"),
    "early_slope": Entry("label_budget", "Early slope and plateau", "How many samples to label (L5)"),
}


def __getattr__(name: str) -> Figure:
    if name not in CATALOGUE:
        raise AttributeError(f"there is no figure {name!r}: there are {', '.join(CATALOGUE)}")
    return getattr(import_module(f"chexstudy.plots.{CATALOGUE[name].module}"), name)


def __dir__() -> list[str]:
    return list(CATALOGUE)
