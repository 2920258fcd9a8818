"""Which step makes which artifact: the one place below the command line that knows a notebook by its name.

A step is a notebook or a command. To insert a notebook, or to give one another name, is to edit this table.
"""

from fnmatch import fnmatchcase

# Names of artifacts as patterns, whose ``*`` also crosses folders; the first that fits counts.
_STEPS = {
    "01_build_cohort": """
        cohort.parquet quarantine.parquet annotations.parquet truth* phantom/* pixels/* orientation*
        figures/radiographs* figures/composition* figures/orientation* duplicates.parquet
        figures/duplicates*""",
    "02_embed_pairs": "pretraining/config.json embeddings/* figures/embedding*",
    "03_watch_prototypes": """
        pretraining/*/map.parquet pretraining/*/stage_maps.parquet pretraining/*/trajectory.parquet
        figures/framework* figures/prototype_*""",
    "13_pretrain_ssl": """
        pretraining/*.self_supervised* curation/*.self_supervised* results/self_supervision*
        figures/self_supervised_* figures/patch_*""",
    "08_compare_curators": "curation/* pretraining/by_* results/method_* figures/method_comparison*",
    "12_sweep_budgets": "results/budget_* pretraining/*.keep_* figures/budgets*",
    "04_pretrain_curated": "pretraining/* figures/training_dynamics*",
    "15_write_reports": """
        evaluation/*/report_generation* results/report_* report_models/* figures/report_*
        figures/performance_by_scale*""",
    "05_compare_arms": """
        evaluation/* results/zero_shot* results/linear_probe* results/prompt_family* results/retrieval.parquet
        results/retrieval_difference.parquet results/spectrum* results/operating_point* results/calibration*
        figures/compute* figures/zero_shot* figures/spectrum* figures/calibration* figures/retrieval*""",
    "06_long_tail": """
        results/curation* results/audit* results/mismatch* results/gain* results/subgroup* results/retrieval_choice*
        figures/density* figures/audit* figures/long_tail* figures/subgroups*""",
    "07_ablate_curator": """
        ablation/* results/ablation_* figures/curator_ablation* figures/ratio_law* figures/trained_ablation*""",
    "09_adapt_encoder": """
        features/* heads/* outcomes/* results/adaptation* results/outcome* figures/heads* figures/glori_*
        figures/label_efficiency* figures/probe_variants* figures/outcomes*""",
    "14_segment_anatomy": "segmentation/* results/segmentation* figures/segmentation* figures/outlines*",
    "10_see_with_glori": "results/attention* figures/attention* figures/pointing_test*",
    "11_plan_labels": """
        label_budget/* results/learning_curve* results/curve_family* results/label_* figures/label*
        figures/learning_curves* figures/curve_families* figures/early_slope*""",
    "16_when_curation_pays": "figures/regimes_*",
    "`chexstudy run all`": "timings/*",
}


def find_step(artifact: str, unknown: str = "the step that makes it") -> str:
    """The step that makes an artifact, to follow "run" in a sentence, or ``unknown``."""
    for step, patterns in _STEPS.items():
        if any(fnmatchcase(artifact, pattern) for pattern in patterns.split()):
            return step
    return unknown
