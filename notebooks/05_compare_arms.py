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
# the same size or the same cost, and whether setting mismatched pairs aside first changes that: zero-shot
# classification, retrieval and a linear probe on held-out patients, each number with a 95 % interval, each comparison
# paired by patient and seed. Then what one AUROC hides: the sentences that were asked, who the negatives are, the
# prevalence, thresholds carried from validation, and calibration.
#
# **What it costs.** About three minutes for the default study on 2 cores; at paper scale minutes a test set on a GPU.

# %% tags=["parameters"]
study = "demo"  # name of the study, the folder under runs/
change = False  # give the study other values than it has, and tell what is stale from then on
seed = 0  # first seed of the arms, and seed of the resampling
seeds = 5  # number of seeds
arms: list[str] = []  # arms to compare; empty for all
resamples = 1000  # bootstrap resamples of patients
probe = True  # train linear probes on the frozen image encoder
device = "auto"  # auto, cpu or cuda
arms_at_once = 2  # arms evaluated side by side; 1 on a GPU
prompt_file = ""  # YAML file with prompt families of your own, measured beside those of the study; empty for none
robustness_arms: list[str] = ["curated", "full"]  # arms whose prompts, negatives, thresholds, calibration are shown
prevalences: list[float] = [0.01, 0.1]  # prevalences at which average precision is stated

# %%

from chexstudy.plots import figures
from chexstudy.results import OVER_SEEDS, add_results, read_results
from chexstudy.study import open_study

study = open_study("05_compare_arms", globals())

# %% [markdown]
# ## Measure
#
# Prompts and the strength of the probe are chosen on the validation split. Uncertain labels are left out; a finding with
# one class only is listed as not evaluable. Patients are resampled, the same ones for every arm.

# %%
from chexstudy.evaluation.image_text.evaluate import evaluate_arms
from chexstudy.evaluation.image_text.prompts import add_prompt_families

evaluation = study.evaluation(probe=probe, families=add_prompt_families(prompt_file))
results = add_results(study.run, evaluate_arms(evaluation, study.arms, study.seeds, workers=arms_at_once))
{name: len(rows) for name, rows in evaluation.test_sets().items()}

# %% [markdown]
# ## The table
#
# Zero-shot AUROC with the prompts chosen on validation: means over seeds, intervals over patients and seeds. `exposure`
# says whether the model may have seen the data set in training: held out, seen, or unknown.

# %%
from chexstudy.evaluation.image_text.summary import summarise_zero_shot

summarise_zero_shot(results, study.arms)

# %% [markdown]
# ## C2. Zero-shot classification
#
# Both arms that curate are held against all others. An interval of a difference that excludes zero is a difference this
# study can see; one that does not is not evidence of equality.

# %%
figures.zero_shot.show(study, results)

# %% [markdown]
# ## C3. Retrieval
#
# Identical texts count as one candidate, as published; an image finds its text, and a text any image it describes.

# %%
figures.retrieval.show(study, results)

# %% [markdown]
# ## C4. Performance against data and compute

# %%
from chexstudy.pretraining.arms.definitions import read_costs

costs = read_costs(study.run, study.arms, study.seeds)
figures.compute.show(study, results, costs)

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
from chexstudy.evaluation.robustness.report import measure_robustness, summarise_robustness

chosen_arms = [name for name in study.arms if name in robustness_arms] or study.arms[:1]
robustness, curves = measure_robustness(evaluation, chosen_arms, study.seeds, prevalences)
add_results(study.run, robustness)
results = read_results(study.run)

# %% [markdown]
# ### Spectrum effects: prompts and the choice of negatives
#
# The same images and labels, asked with other sentences; and the same scores, judged against people without any finding
# or with another one. In a clinic most who are imaged have something: the second is what is met there.

# %%
figures.spectrum.show(study, results)

# %%
summarise_robustness(results)

# %% [markdown]
# ### Findings whose prompt points the wrong way
#
# An AUROC under 0.5 ranks the sick below the healthy. Where the whole interval lies there, it is no accident: compare
# with the linear probe, then change the sentences (`prompt_file`) and judge them on validation; never turn the sign on a
# test split.

# %%
from chexstudy.evaluation.image_text.zero_shot import list_inverted, warn_inverted

for sentence in warn_inverted(results[results.task == "prompt_family"]):
    print(sentence)
inverted = list_inverted(results[(results.task == "zero_shot") & (results.seed == OVER_SEEDS)])
inverted[["arm", "data_set", "finding", "value", "ci_low", "ci_high", "n", "positives", "exposure"]].round(3)

# %% [markdown]
# ### Thresholds carried from validation
#
# Each threshold was chosen on validation for a target and carried as it is. `held` counts the findings whose interval on
# the test set holds the target, `below` those whose whole interval lies under it. An enriched test set is sicker than
# validation, so that a specificity chosen there must fall.

# %%
from chexstudy.evaluation.robustness.thresholds import tabulate_transport

tabulate_transport(results[results.task == "operating_point"]).round(3)

# %% [markdown]
# ### Calibration
#
# A softmax over two raw cosines ranks but is no probability. One temperature a finding cannot mend a wrong prevalence;
# Platt's line does, and where a test set is enriched, its prevalence must be told. First seed alone.

# %%
figures.calibration.show(study, curves, results)

# %% [markdown]
# ## What must hold

# %%
measured = results[results.metric.isin(["auroc", "auprc"]) & results.value.notna()]
assert (measured.n > 0).all()
assert measured.value.between(0, 1).all()
assert (measured.ci_low <= measured.ci_high)[measured.ci_low.notna()].all()
shares = ["sensitivity", "specificity", "ppv", "npv", "brier"]
bounded = results[results.metric.isin(shares) & results.value.notna()]
assert bounded.value.between(0, 1).all()

# %% [markdown]
# What came out, in sentences made from the numbers:

# %%
from chexstudy.evaluation.image_text.summary import state_arm_differences

for sentence in state_arm_differences(results):
    print(sentence)
