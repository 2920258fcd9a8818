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
# number with a 95 % interval, each comparison paired by patient and seed.
#
# **What it costs.** About a minute and a half for the default study on 2 cores; at paper scale minutes a test set on a
# GPU.

# %% tags=["parameters"]
study = "demo"  # name of the study, the folder under runs/
seed = 0  # first seed of the arms, and seed of the resampling
seeds = 3  # number of seeds
arms: list[str] = []  # arms to compare; empty for all
resamples = 1000  # bootstrap resamples of patients
probe = True  # train linear probes on the frozen image encoder
device = "auto"  # auto, cpu or cuda
arms_at_once = 2  # arms evaluated side by side; 1 on a GPU

# %%
from IPython.display import display

from chexstudy.cohort.pixels import open_pixel_store
from chexstudy.cohort.table import finding_columns, read_cohort
from chexstudy.evaluation.arms import Evaluation, evaluate_arms
from chexstudy.evaluation.results import add_results
from chexstudy.evaluation.summary import summarise_zero_shot
from chexstudy.evaluation.zero_shot import list_inverted
from chexstudy.notebook import start_notebook
from chexstudy.plots.compute import describe_compute, judge_saving, plot_compute, select_compute
from chexstudy.plots.retrieval import describe_retrieval, plot_retrieval, select_retrieval
from chexstudy.plots.style import save_figure
from chexstudy.plots.zero_shot import describe_zero_shot, plot_zero_shot, select_zero_shot
from chexstudy.pretraining.arms import choose_arms, choose_seeds, read_costs
from chexstudy.pretraining.engine import choose_device

run = start_notebook("05_compare_arms", globals())
cohort = read_cohort(run.require("cohort.parquet", "01_build_cohort"))
labelled = bool(finding_columns(cohort))
arm_names = choose_arms(arms, labelled)
arm_seeds = choose_seeds(seed, seeds)

# %% [markdown]
# ## Measure
#
# Prompts and the strength of the probe are chosen on the validation split. Uncertain labels are left out; a finding with
# one class only is listed as not evaluable. Patients are resampled, the same ones for every arm.

# %%
evaluation = Evaluation(run, cohort, open_pixel_store(run), resamples, seed, probe, str(choose_device(device)))
results = add_results(run, evaluate_arms(evaluation, arm_names, arm_seeds, workers=arms_at_once))
{name: len(rows) for name, rows in evaluation.test_sets().items()}

# %% [markdown]
# ## The table
#
# Zero-shot AUROC with the prompts chosen on validation: means over seeds, intervals over patients and seeds.

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
probes.groupby(["data_set", "arm"]).value.agg(["mean", "min", "max"]).round(3)

# %% [markdown]
# ## Findings whose prompt points the wrong way

# %%
inverted = list_inverted(results[(results.task == "zero_shot") & (results.seed == -1)])
inverted[["arm", "data_set", "finding", "value", "ci_low", "ci_high", "n", "positives"]].round(3)

# %% [markdown]
# ## What must hold

# %%
measured = results[results.metric.isin(["auroc", "auprc"]) & results.value.notna()]
assert (measured.n > 0).all()
assert measured.value.between(0, 1).all()
assert (measured.ci_low <= measured.ci_high)[measured.ci_low.notna()].all()
assert set(results.exposure[~results.task.str.contains("curation")]) <= {"held_out", "unknown"}
print(f"{len(results):,} rows in the results table, every metric with its n")
