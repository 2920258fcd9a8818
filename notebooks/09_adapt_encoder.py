# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 9. Adapt the encoder
#
# **What it shows.** What a pretrained image encoder is worth once labels are given. Heads on its frozen features (linear
# probe, logistic regression, nearest neighbours, GLoRI), by prevalence and by finding; what each part of GLoRI adds; what
# a curated encoder needs in labels against others; what tuning the encoder itself brings; and tasks it never saw, such
# as who dies when.
#
# **What it costs.** About twenty minutes for the default study on 2 cores: 3 encoders, 3 seeds, 5 heads, and details on one
# of them. Features are computed once; on a GPU a ViT-L at 512 pixels takes minutes for 10,000 images, and 8.4 MB of disk
# for each image whose patches are kept.

# %% tags=["parameters"]
study = "demo"  # name of the study, the folder under runs/
change = False  # give the study other values than it has, and tell what is stale from then on
seed = 0  # first seed of the arms, and seed of the resampling
seeds = 3  # number of seeds
adapted_arms: list[str] = ["curated", "random_same_data", "full"]  # trained arms whose image encoders are adapted
heads: list[str] = ["linear", "logistic", "neighbours", "glori_v1", "glori_v2"]  # heads on frozen features
head_epochs = 10  # epochs of the linear probe over the labelled images (published: 10, in its scripts 100)
glori_epochs = 10  # epochs of GLoRI
glori_batch_size = 32  # images a step of GLoRI (published: 128); few labels want more steps
glori_learning_rates: list[float] = [1e-3, 3e-3]  # tried together, chosen on validation (published: 13, as the probe)
glori_width = 64  # dimension of GLoRI's queries, in heads of 16 (published: 768, in 8 heads of 96)
glori_standardise = True  # bring the channels of GLoRI's tokens to one scale (published: as they come from a ViT)
label_shares: list[float] = [0.05, 0.1, 0.25, 0.5]  # shares of the labelled patients, beside all of them
small_lesions = 0.025  # a finding is small if its median lesion covers less of the image
few_labels = 0.1  # share of labels at which the first arm is held against the others with all labels
detail_seeds = 1  # seeds of the first arm on which variants, losses and fine-tuning are compared
tune: list[str] = ["bias_only", "full"]  # ways to tune the encoder: bias_only, low_rank (transformers only), full
tune_epochs = 6  # epochs of fine-tuning
horizons: list[float] = [1.0, 5.0]  # years at which outcomes are predicted
resamples = 1000  # bootstrap resamples of patients
device = "auto"  # auto, cpu or cuda
arms_at_once = 2  # arms adapted side by side; 1 on a GPU

# %%
import pandas as pd
from IPython.display import display

from chexstudy.cohort.pixels.store import open_pixel_store
from chexstudy.cohort.table import finding_columns, read_cohort
from chexstudy.evaluation.adaptation.run import (
    adapt_arms,
    compare_adaptation,
    freeze_arm,
    measure_adaptation,
    tabulate_costs,
)
from chexstudy.evaluation.context import Evaluation
from chexstudy.cohort.annotations import measure_lesion_sizes, read_regions
from chexstudy.evaluation.adaptation.recipes import plan_glori, plan_study
from chexstudy.evaluation.adaptation.training import Recipe
from chexstudy.evaluation.outcomes.prediction import curves_artifact, evaluate_outcomes, explain_no_outcomes
from chexstudy.results import OVER_SEEDS, add_results
from chexstudy.workflow.notebook import start_notebook
from chexstudy.plots.adaptation import (
    describe_gains,
    describe_heads,
    describe_label_efficiency,
    describe_variants,
    plot_gains,
    plot_heads,
    plot_label_efficiency,
    plot_variants,
    select_gains,
    select_heads,
    select_label_efficiency,
    select_variants,
    tabulate_heads,
)
from chexstudy.plots.outcomes import describe_outcomes, plot_outcomes, select_outcomes
from chexstudy.plots.style import save_figure
from chexstudy.pretraining.arms.definitions import choose_seeds
from chexstudy.devices import choose_device

run = start_notebook("09_adapt_encoder", globals())
cohort = read_cohort(run.require("cohort.parquet"))
if not finding_columns(cohort):
    heads, label_shares, tune = [], [], []
    print("the cohort has no labels: there is nothing to adapt an encoder to but outcomes, if it has some")
arm_seeds = choose_seeds(seed, seeds)
few_seeds = choose_seeds(seed, min(detail_seeds, seeds))
first_arm = adapted_arms[0]
evaluation = Evaluation(run, cohort, open_pixel_store(run), resamples, seed, device=str(choose_device(device)))

# %% [markdown]
# ## Fit the heads
#
# Encoders stay frozen, so their features are computed once and every head learns from them. The linear probe is the
# published sweep: 13 learning rates trained together on the CLS tokens of the last four blocks, one chosen on
# validation. A ResNet has no CLS token; the mean of each stage's map stands in. GLoRI looks at the patches with one query
# a finding: version 1 is its public code, version 2 adds the paper's temperature, pyramid and CLS tokens. Test splits are
# only scored.

# %%
glori = plan_glori(glori_epochs, glori_batch_size, glori_learning_rates, glori_width, glori_standardise)
plans = plan_study(heads, Recipe(epochs=head_epochs), glori, [*label_shares, few_labels], tune, tune_epochs)
details = [*plans.glori_variants, *plans.probe_variants]
adapt_arms(evaluation, adapted_arms, arm_seeds, [*plans.heads, *plans.shares], workers=arms_at_once)
adapt_arms(evaluation, [first_arm], few_seeds, details, workers=arms_at_once)
adapted = measure_adaptation(evaluation, adapted_arms, arm_seeds, plans.heads)
tabulate_costs(run, adapted_arms, arm_seeds, plans.heads).round(1)

# %% [markdown]
# ## X2. Heads by prevalence

# %%
if adapted.value.notna().any():
    display(tabulate_heads(adapted, "auroc"), tabulate_heads(adapted, "auprc"))
    by_head = plot_heads(adapted)
    save_figure(run, by_head, "heads", describe_heads(adapted), select_heads(adapted))
    display(by_head)

# %% [markdown]
# ## What GLoRI gains, finding by finding
#
# Paired by patient and seed, against the published linear probe and against logistic regression. Where lesions are
# small, a pooled feature dilutes them: that is where looking at places should pay.

# %%
tests = pd.concat(evaluation.test_sets().values())
regions = read_regions(run, tests, evaluation.findings, evaluation.store.size, evaluation.store.fit)
outlined = regions.kind == "finding" and not regions.missing
if not outlined:
    print(f"lesion sizes are not known: {regions.missing or 'only the lungs have outlines here'}")
sizes = measure_lesion_sizes(regions) if outlined else None
small = list(sizes.index[sizes < small_lesions]) if outlined else []
pairs = plans.pair_glori(adapted_arms)
differences = compare_adaptation(evaluation, arm_seeds, pairs, small)

# %%
groups = ["macro", "tail", "small lesions"]
print(f"small lesions: {', '.join(small) or 'none'}")
columns = ["data_set", "arm", "setting", "finding", "metric", "value", "ci_low", "ci_high"]
differences[differences.finding.isin(groups)][columns].round(3).reset_index(drop=True)

# %%
if pairs and differences.value.notna().any():
    compared = [(first.name, second.name) for (arm, first), (_, second) in pairs if arm == first_arm]
    shown = (differences, first_arm, compared, sizes)
    gains = plot_gains(*shown)
    numbers = pd.concat([select_gains(differences, first_arm, *pair) for pair in compared])
    save_figure(run, gains, "glori_gains", describe_gains(*shown), numbers)
    display(gains)

# %% [markdown]
# ## X4, C5. How many labels adaptation needs
#
# Logistic regression on shares of the labelled patients. Validation is thinned like training, for its labels have to be
# bought as well; each seed draws other patients, and all encoders get the same ones. CheXficient is said to need 10 % of
# the labels to match a model of random data with all of them; panel b asks that.

# %%
shares = measure_adaptation(evaluation, adapted_arms, arm_seeds, plans.shares)
claims = compare_adaptation(evaluation, arm_seeds, plans.pair_label_shares(adapted_arms, few_labels))

# %%
efficiency = [table for table in (adapted, shares, claims) if len(table)]
if shares.value.notna().any():
    efficiency = pd.concat(efficiency, ignore_index=True)
    by_share = plot_label_efficiency(efficiency)
    text = describe_label_efficiency(efficiency)
    save_figure(run, by_share, "label_efficiency", text, select_label_efficiency(efficiency))
    display(by_share)

# %% [markdown]
# ## X8. What the parts of GLoRI add
#
# Version 2 with one part changed at a time, on the first arm.

# %%
parts = compare_adaptation(evaluation, few_seeds, plans.pair_glori_variants(first_arm))

# %%
if parts.value.notna().any():
    ablated = plot_variants(parts, first_arm, "glori_v2")
    text = describe_variants(parts, first_arm, "glori_v2")
    save_figure(run, ablated, "glori_parts", text, select_variants(parts, first_arm, "glori_v2"))
    display(ablated)

# %% [markdown]
# ## X12. Probe features, losses for the tail, and tuning the encoder
#
# The linear probe on other features and under other losses, and the encoder itself tuned: its biases alone (BitFit),
# low-rank updates (LoRA; not for convolutional ResNets), or all of it. Each held against the linear probe, on the first
# arm.

# %%
detailed = measure_adaptation(evaluation, [first_arm], few_seeds, details)
against_probe = compare_adaptation(evaluation, few_seeds, plans.pair_probe_variants(first_arm))
tabulate_costs(run, [first_arm], few_seeds, details).round(1)

# %%
if against_probe.value.notna().any():
    tuned = plot_variants(against_probe, first_arm, "linear")
    text = describe_variants(against_probe, first_arm, "linear")
    save_figure(run, tuned, "probe_variants", text, select_variants(against_probe, first_arm, "linear"))
    display(tuned)

# %% [markdown]
# ## X5, X6. Tasks the encoder never saw
#
# Outcomes of the cohort table. Where a time is known: penalised Cox models on the frozen features, on age and sex, and on
# both; patients with several images are resampled together, and the curves of risk groups show each patient once. Where
# only whether is known, such as a tube in the wrong place: logistic regression. On the phantom the true hazard is known,
# which gives the ceiling.

# %%
predicted, obstacle = pd.DataFrame(), explain_no_outcomes(cohort)
if obstacle:
    print(obstacle)
else:
    frozen = {one: freeze_arm(evaluation, first_arm, one, patches=False) for one in arm_seeds}
    predicted = evaluate_outcomes(evaluation, first_arm, frozen, horizons)
    if predicted.value.notna().any():
        curves = run.read_table(curves_artifact(first_arm))
        risks = plot_outcomes(predicted, curves)
        save_figure(run, risks, "outcomes", describe_outcomes(predicted, curves), select_outcomes(predicted))
        display(risks)

# %% [markdown]
# ## Into the results table

# %%
measured = [adapted, shares, detailed, differences, claims, parts, against_probe, predicted]
filled = [table for table in measured if len(table)]
results = add_results(run, pd.concat(filled, ignore_index=True)) if filled else adapted
not_evaluable = adapted[(adapted.metric == "auroc") & adapted.value.isna() & (adapted.seed == OVER_SEEDS)]
columns = ["data_set", "finding", "n", "positives"]
print("not evaluable, one class only:" if len(not_evaluable) else "every finding could be evaluated on every test set")
not_evaluable[columns].drop_duplicates().reset_index(drop=True)

# %% [markdown]
# ## What must hold

# %%
rows = results[results.task == "adaptation"]
assert set(rows.arm) == set(adapted_arms if heads else [])
assert set(heads) <= set(rows.setting)
assert not rows.data_set.str.endswith(("train", "validate")).any(), "a head was measured on what it was chosen on"
known = rows[rows.metric.isin(["auroc", "auprc"]) & rows.value.notna()]
assert known.value.between(0, 1).all()
assert (known.ci_low.isna() | (known.ci_low <= known.ci_high)).all()
print(f"{len(heads)} heads on {len(adapted_arms)} encoders, {len(arm_seeds)} seeds, measured on held-out patients")
