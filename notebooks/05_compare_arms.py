# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 5. Compare the arms
#
# **What it shows.** Whether a curated subset trains as good a model as all data, and a better one than a random subset of
# the same size or the same cost: zero-shot classification, retrieval and a linear probe on held-out patients, each
# number with a 95 % interval, each comparison paired by patient and seed. Then what one AUROC hides: the sentences that
# were asked, who the negatives are, the prevalence, thresholds carried from validation, and calibration.
#
# **What it costs.** About two minutes for the default study on 2 cores; at paper scale minutes a test set on a GPU.

# %% tags=["parameters"]
study = "demo"  # name of the study, the folder under runs/
change = False  # give the study other values than it has, and tell what is stale from then on
seed = 0  # first seed of the arms, and seed of the resampling
seeds = 3  # number of seeds
arms: list[str] = []  # arms to compare; empty for all
resamples = 1000  # bootstrap resamples of patients
probe = True  # train linear probes on the frozen image encoder
device = "auto"  # auto, cpu or cuda
arms_at_once = 2  # arms evaluated side by side; 1 on a GPU
prompt_file = ""  # YAML file with prompt families of your own, measured beside those of the study; empty for none
scrutinised_arms: list[str] = ["curated", "full"]  # arms whose prompts, negatives, thresholds, calibration are shown
prevalences: list[float] = [0.01, 0.1]  # prevalences at which average precision is stated

# %%
import pandas as pd
from IPython.display import display

from chexstudy import paths
from chexstudy.cohort.pixels.store import open_pixel_store
from chexstudy.cohort.table import finding_columns, read_cohort
from chexstudy.evaluation.image_text.evaluate import Evaluation, evaluate_arms
from chexstudy.evaluation.image_text.prompts import add_prompt_families
from chexstudy.results import add_results
from chexstudy.evaluation.robustness.report import TASKS as SCRUTINY_TASKS
from chexstudy.evaluation.robustness.report import scrutinise_arms, summarise_scrutiny
from chexstudy.evaluation.image_text.summary import summarise_zero_shot
from chexstudy.evaluation.robustness.thresholds import tabulate_transport
from chexstudy.evaluation.image_text.zero_shot import list_inverted, warn_inverted
from chexstudy.workflow.notebook import start_notebook
from chexstudy.plots.calibration import describe_calibration, plot_calibration, select_calibration
from chexstudy.plots.compute import describe_compute, judge_saving, plot_compute, select_compute
from chexstudy.plots.retrieval import describe_retrieval, plot_retrieval, select_retrieval
from chexstudy.plots.spectrum import describe_spectrum, plot_spectrum, select_spectrum
from chexstudy.plots.style import save_figure
from chexstudy.plots.zero_shot import describe_zero_shot, plot_zero_shot, select_zero_shot
from chexstudy.pretraining.arms.definitions import choose_arms, choose_seeds, read_costs
from chexstudy.devices import choose_device

run = start_notebook("05_compare_arms", globals())
cohort = read_cohort(run.require("cohort.parquet"))
labelled = bool(finding_columns(cohort))
arm_names = choose_arms(arms, labelled)
arm_seeds = choose_seeds(seed, seeds)
families = add_prompt_families(paths.resolve_user_path(prompt_file) if prompt_file else "")

# %% [markdown]
# ## Measure
#
# Prompts and the strength of the probe are chosen on the validation split. Uncertain labels are left out; a finding with
# one class only is listed as not evaluable. Patients are resampled, the same ones for every arm.

# %%
evaluation = Evaluation(
    run, cohort, open_pixel_store(run), resamples, seed, probe, str(choose_device(device)), families
)
results = add_results(run, evaluate_arms(evaluation, arm_names, arm_seeds, workers=arms_at_once))
{name: len(rows) for name, rows in evaluation.test_sets().items()}

# %% [markdown]
# ## The table
#
# Zero-shot AUROC with the prompts chosen on validation: means over seeds, intervals over patients and seeds. `exposure`
# says whether the model may have seen the data set in training: held out, seen, or unknown.

# %%
summarise_zero_shot(results, arm_names)

# %% [markdown]
# ## C2. Zero-shot classification
#
# An interval of a difference that excludes zero is a difference this study can see; one that does not is not evidence of
# equality.

# %%
if labelled:
    zero_shot = plot_zero_shot(results)
    save_figure(run, zero_shot, "zero_shot", describe_zero_shot(results), select_zero_shot(results))
    display(zero_shot)
else:
    print("the cohort has no labels: retrieval is the only task")

# %% [markdown]
# ## C3. Retrieval
#
# Identical texts count as one candidate, as published; an image finds its text, and a text any image it describes.

# %%
retrieval = plot_retrieval(results)
save_figure(run, retrieval, "retrieval", describe_retrieval(results), select_retrieval(results))
retrieval

# %% [markdown]
# ## C4. Performance against data and compute

# %%
costs = read_costs(run, arm_names, arm_seeds)
if labelled:
    compute = plot_compute(results, costs)
    save_figure(run, compute, "compute", describe_compute(results, costs), select_compute(results, costs))
    if {"curated", "full"} <= set(arm_names):
        print(judge_saving(results, costs))
    display(compute)

# %% [markdown]
# ## Linear probe
#
# Frozen image features. A good probe beside a poor zero-shot score means that the text side, not the image, is at fault.

# %%
probes = results[(results.task == "linear_probe") & (results.metric == "auroc") & (results.finding == "macro")]
probes.groupby(["data_set", "exposure", "arm"]).value.agg(["mean", "min", "max"]).round(3)

# %% [markdown]
# ## What one AUROC hides
#
# From the scores kept above, for a few arms: every prompt family, healthy or sick negatives, average precision at stated
# prevalences, thresholds and calibration carried from validation. Nothing is chosen on a test split.

# %%
chosen_arms = [name for name in arm_names if name in scrutinised_arms] or arm_names[:1]
scrutiny, curves = scrutinise_arms(evaluation, chosen_arms, arm_seeds, prevalences)
if labelled:
    results = pd.concat([results, add_results(run, scrutiny)], ignore_index=True)

# %% [markdown]
# ### Prompts and negatives
#
# The same images and labels, asked with other sentences; and the same scores, judged against people without any finding
# or with another one. In a clinic most who are imaged have something: the second is what is met there.

# %%
if labelled:
    spectrum = plot_spectrum(results)
    save_figure(run, spectrum, "spectrum", describe_spectrum(results), select_spectrum(results))
    display(spectrum, summarise_scrutiny(results))

# %% [markdown]
# ### Findings whose prompt points the wrong way
#
# An AUROC under 0.5 ranks the sick below the healthy. Where the whole interval lies there, it is no accident: compare
# with the linear probe, then change the sentences (`prompt_file`) and judge them on validation; never turn the sign on a
# test split.

# %%
inverted = list_inverted(results[(results.task == "zero_shot") & (results.seed == -1)])
display(inverted[["arm", "data_set", "finding", "value", "ci_low", "ci_high", "n", "positives", "exposure"]].round(3))
for sentence in warn_inverted(results[results.task == "prompt_family"]):
    print(sentence)

# %% [markdown]
# ### Thresholds carried from validation
#
# Each threshold was chosen on validation for a target and carried as it is. `held` counts the findings whose interval on
# the test set holds the target, `below` those whose whole interval lies under it. An enriched test set is sicker than
# validation, so that a specificity chosen there must fall.

# %%
tabulate_transport(results[results.task == "operating_point"]).round(3)

# %% [markdown]
# ### Calibration
#
# A softmax over two raw cosines ranks but is no probability. One temperature a finding cannot mend a wrong prevalence;
# Platt's line does, and where a test set is enriched, its prevalence must be told. First seed alone.

# %%
if len(curves):
    calibration = plot_calibration(curves)
    save_figure(run, calibration, "calibration", describe_calibration(curves, results), select_calibration(curves))
    display(calibration)
else:
    print("no reliability curves: they need labels in the validation and in the test split")

# %% [markdown]
# ## What must hold

# %%
measured = results[results.metric.isin(["auroc", "auprc"]) & results.value.notna()]
assert (measured.n > 0).all()
assert measured.value.between(0, 1).all()
assert (measured.ci_low <= measured.ci_high)[measured.ci_low.notna()].all()
bounded = results[
    results.metric.isin(["f1", "sensitivity", "specificity", "ppv", "npv", "brier"]) & results.value.notna()
]
assert bounded.value.between(0, 1).all()
here = results[results.task.isin(["zero_shot", "retrieval", "linear_probe", *SCRUTINY_TASKS])]
assert set(here.exposure) <= {"held_out", "unknown"}
print(f"{len(results):,} rows in the results table, every metric with its n")
