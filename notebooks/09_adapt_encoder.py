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
seeds = 5  # number of seeds
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
horizons: list[float] = [1.0, 5.0]  # years at which the AUROC of outcomes with a time is taken
resamples = 1000  # bootstrap resamples of patients
device = "auto"  # auto, cpu or cuda
arms_at_once = 2  # arms adapted side by side; 1 on a GPU

# %%
from chexstudy.plots import figures
from chexstudy.results import OVER_SEEDS, add_results, join_rows
from chexstudy.study import open_study

study = open_study("09_adapt_encoder", globals())
evaluation, first_arm, few_seeds = study.evaluation(), adapted_arms[0], study.seeds[:detail_seeds]

# %% [markdown]
# ## Fit the heads
#
# Encoders stay frozen, so their features are computed once and every head learns from them. The linear probe is the
# published sweep: 13 learning rates trained together on the CLS tokens of the last four blocks, one chosen on
# validation. A ResNet has no CLS token; the mean of each stage's map stands in. GLoRI looks at the patches with one query
# a finding: version 1 is its public code, version 2 adds the paper's temperature, pyramid and CLS tokens. Test splits are
# only scored.

# %%
from chexstudy.evaluation.adaptation.recipes import plan_glori, plan_study
from chexstudy.evaluation.adaptation.run import adapt_arms, measure_adaptation, tabulate_costs
from chexstudy.evaluation.adaptation.training import Recipe

glori = plan_glori(glori_epochs, glori_batch_size, glori_learning_rates, glori_width, glori_standardise)
shares = [*label_shares, few_labels]
plans = plan_study(study.findings, heads, Recipe(epochs=head_epochs), glori, shares, tune, tune_epochs)
details = [*plans.glori_variants, *plans.probe_variants]
adapt_arms(evaluation, adapted_arms, study.seeds, [*plans.heads, *plans.shares], workers=arms_at_once)
adapt_arms(evaluation, [first_arm], few_seeds, details, workers=arms_at_once)
adapted = measure_adaptation(evaluation, adapted_arms, study.seeds, plans.heads)
tabulate_costs(study.run, adapted_arms, study.seeds, plans.heads).round(1)

# %% [markdown]
# ## X2. Heads by prevalence

# %%
figures.heads.show(study, adapted)

# %%
from chexstudy.plots.adaptation import tabulate_heads

tabulate_heads(adapted, "auroc")

# %%
tabulate_heads(adapted, "auprc")

# %% [markdown]
# ## What GLoRI gains, finding by finding
#
# Paired by patient and seed, against the published linear probe and against logistic regression. Where lesions are
# small, a pooled feature dilutes them: that is where looking at places should pay.

# %%
import pandas as pd

from chexstudy.cohort.annotations import list_lesion_sizes
from chexstudy.evaluation.adaptation.run import compare_adaptation

tests, store = pd.concat(evaluation.test_sets().values()), study.pixels
sizes = list_lesion_sizes(study.run, tests, study.findings, store.size, store.fit)
small = list(sizes.index[sizes < small_lesions])
pairs = plans.pair_glori(adapted_arms)
differences = compare_adaptation(evaluation, study.seeds, pairs, small)
print(f"small lesions: {', '.join(small) or 'none'}")
columns = ["data_set", "arm", "head", "reference", "finding", "metric", "value", "ci_low", "ci_high"]
shown = differences[differences.finding.isin(["macro", "tail", "small lesions"])]
shown[columns].round(3).reset_index(drop=True)

# %%
compared = [(first.name, second.name) for (arm, first), (_, second) in pairs if arm == first_arm]
figures.glori_gains.show(study, differences, first_arm, compared, sizes)

# %% [markdown]
# ## X4, C5. How many labels adaptation needs
#
# Logistic regression on shares of the labelled patients. Validation is thinned like training, for its labels have to be
# bought as well; each seed draws other patients, and all encoders get the same ones. CheXficient is said to need 10 % of
# the labels to match a model of random data with all of them; panel b asks that.

# %%
by_share = measure_adaptation(evaluation, adapted_arms, study.seeds, plans.shares)
claims = compare_adaptation(evaluation, study.seeds, plans.pair_label_shares(adapted_arms, few_labels))
figures.label_efficiency.show(study, join_rows(adapted, by_share, claims))

# %% [markdown]
# ## X8. What the parts of GLoRI add
#
# Version 2 with one part changed at a time, on the first arm.

# %%
parts = compare_adaptation(evaluation, few_seeds, plans.pair_glori_variants(first_arm))
figures.glori_parts.show(study, parts, first_arm, "glori_v2")

# %% [markdown]
# ## X12. Probe features, losses for the tail, and tuning the encoder
#
# The linear probe on other features and under other losses, and the encoder itself tuned: its biases alone (BitFit),
# low-rank updates (LoRA; not for convolutional ResNets), or all of it. Each held against the linear probe, on the first
# arm.

# %%
detailed = measure_adaptation(evaluation, [first_arm], few_seeds, details)
against_probe = compare_adaptation(evaluation, few_seeds, plans.pair_probe_variants(first_arm))
figures.probe_variants.show(study, against_probe, first_arm, "linear")

# %%
tabulate_costs(study.run, [first_arm], few_seeds, details).round(1)

# %% [markdown]
# ## X5, X6. Tasks the encoder never saw
#
# Outcomes of the cohort table. Where a time is known: penalised Cox models on the frozen features, on age and sex, and on
# both; patients with several images are resampled together, and the curves of risk groups show each patient once. Where
# only whether is known, such as a tube in the wrong place: logistic regression. On the phantom the true hazard is known,
# which gives the ceiling.

# %%
from chexstudy.evaluation.outcomes.prediction import predict_study_outcomes

predicted, curves = predict_study_outcomes(evaluation, first_arm, study.seeds, horizons)
figures.outcomes.show(study, predicted, curves)

# %% [markdown]
# ## Into the results table
#
# Findings that could not be evaluated, because a test set holds one class only:

# %%
measured = join_rows(adapted, by_share, detailed, differences, claims, parts, against_probe, predicted)
results = add_results(study.run, measured)
not_evaluable = adapted[(adapted.metric == "auroc") & adapted.value.isna() & (adapted.seed == OVER_SEEDS)]
not_evaluable[["data_set", "finding", "n", "positives"]].drop_duplicates().reset_index(drop=True)

# %% [markdown]
# ## What must hold

# %%
from chexstudy.plots.adaptation import state_heads

rows = results[results.task == "adaptation"]
assert not rows.data_set.str.endswith(("train", "validate")).any(), "a head was measured on what it was chosen on"
assert rows.value[rows.metric.isin(["auroc", "auprc"])].dropna().between(0, 1).all()
assert not (rows.ci_low > rows.ci_high).any()
for sentence in state_heads(results):
    print(sentence)
