# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 7. Ablate the curator
#
# **What it shows.** What each constant of the curator, and each quirk of the published one, changes: prototypes, bands,
# cap, sampler, update, warm-up, super-batch, outliers, rule and epochs of curation, by their effect on the share kept, on
# rare findings, on duplicates and wrong pairs, and for a chosen few on zero-shot AUROC. And that the share the published
# rule keeps is a law of its constants, while the budgeted rule keeps what it is asked for, whatever the batch.
#
# **What it costs.** About six minutes for the default study on 2 cores, five of them for 27 short trainings and their
# evaluation. Every setting compares every pair with every other: a minute for 4,000 pairs and 3 seeds, hours on a GPU at
# paper scale, and there a training each variant and seed beside.

# %% tags=["parameters"]
study = "demo"  # name of the study, the folder under runs/
change = False  # give the study other values than it has, and tell what is stale from then on
seed = 0  # first seed of the models and of the resampling
seeds = 3  # number of seeds; settings are paired by seed
variants: list[str] = []  # variants to train beside the published curator; empty for all
short_epochs = 4  # epochs over the kept pairs in the trainings of this notebook
resamples = 1000  # bootstrap resamples of patients
device = "auto"  # auto, cpu or cuda
arms_at_once = 2  # arms trained side by side; 1 on a GPU

# %%
from dataclasses import replace

import pandas as pd
from IPython.display import display

from chexstudy.cohort.pixels.store import open_pixel_store
from chexstudy.cohort.table import finding_columns, read_cohort
from chexstudy.curation.online.budgeted import VIRTUAL_BATCH
from chexstudy.curation.choice import count_budget
from chexstudy.curation.records.ledger import read_ledger
from chexstudy.experiments.curator_ablation import (
    KeptMeasure,
    choose_measures,
    describe_ranking,
    describe_reference,
    list_results,
    list_settings,
    measure_settings,
    rank_factors,
    summarise_settings,
    tabulate_settings,
    take_reference,
)
from chexstudy.evaluation.context import Evaluation
from chexstudy.experiments.selection_stability import (
    average_ratio_law,
    describe_stability,
    measure_ratio_law,
    measure_stability,
)
from chexstudy.experiments.published_vs_fixed import ELSEWHERE, compare_quirks, describe_quirks, lay_out_quirks
from chexstudy.results import OVER_SEEDS, add_results
from chexstudy.experiments.trained_variants import (
    choose_test_set,
    choose_variants,
    evaluate_variants,
    list_differences,
    measure_variants,
    summarise_variants,
    train_variants,
)
from chexstudy.workflow.notebook import start_notebook
from chexstudy.plots.ablation import (
    describe_curator_ablation,
    describe_ratio_law,
    plot_curator_ablation,
    plot_ratio_law,
)
from chexstudy.plots.dynamics import measure_churn
from chexstudy.plots.style import save_figure
from chexstudy.pretraining.arms.definitions import choose_seeds, read_costs, tabulate_costs
from chexstudy.pretraining.arms.study_config import read_config
from chexstudy.devices import choose_device
from chexstudy.pretraining.training.scoring import score_training_pairs

run = start_notebook("07_ablate_curator", globals())
config = replace(read_config(run), subset_epochs=short_epochs)
reference = take_reference(config)
trained = choose_variants(variants, reference)
arm_seeds = choose_seeds(seed, seeds)
cohort = read_cohort(run.require("cohort.parquet"))
training = cohort[cohort.split == "train"].reset_index(drop=True)
truth = pd.read_parquet(run.path("truth.parquet")) if run.has("truth.parquet") else None
if truth is not None:
    truth = truth.set_index("image_id").loc[training.image_id].reset_index()
evaluation = Evaluation(run, cohort, open_pixel_store(run), resamples, seed, False, str(choose_device(device)))
labelled = bool(finding_columns(cohort))
tiers = evaluation.tiers() if labelled else {}
measure = KeptMeasure(training, tiers, truth, resamples, seed)
measures = choose_measures(truth is not None)
if not labelled:
    print("the cohort has no labels: rare findings and zero-shot classification are left out")
if truth is None:
    print("the truth about duplicates and mismatched pairs is not known: redundancy and coverage stand for it")

# %% [markdown]
# ## The same features for all settings
#
# The training pairs of each seed are embedded once, by the warm-up that all its arms share. On these features, which do
# not change, the curator runs as a stream: every setting meets the same pairs in the same order. The reference is the
# published curator at this study's sizes.

# %%
scores = {one: score_training_pairs(run, one, config, device) for one in arm_seeds}
settings = list_settings(reference, len(training))
print(f"{len({one.name for one in settings})} settings around {describe_reference(reference)}")

# %% [markdown]
# ## C13. One constant at a time
#
# Whatever keeps more keeps more of the rare, and of the wrong. The column of the tail over chance takes that out: it is
# the share kept of pairs with a finding of the tail, over the share kept of all.

# %%
stream = pd.concat([measure_settings(run, one, settings, reference, scores[one], measure) for one in arm_seeds])
table = tabulate_settings(summarise_settings(stream), settings, measures, len(training))
ablation = plot_curator_ablation(table)
words = f"{describe_reference(reference)}, on features of the warm-up, which do not change"
save_figure(run, ablation, "curator_ablation", describe_curator_ablation(table, words, "over seeds"), table)
ablation

# %% [markdown]
# How far each constant moves each measure, as the highest minus the lowest mean among its settings:

# %%
ranks = rank_factors(table)
print(describe_ranking(ranks))
ranks.round(3)

# %% [markdown]
# ## The ratio law
#
# By the published rule each prototype keeps a tenth of its members (the support band) and at most `central_cap` central
# ones. So the share kept of a super-batch of B pairs is 0.10 + cap x K / B, and less only where prototypes have fewer
# central members than the cap. The data do not enter.

# %%
law_by_seed = pd.concat([measure_ratio_law(reference, scores[one].features, one) for one in arm_seeds])
law = average_ratio_law(law_by_seed)
ratio_law = plot_ratio_law(law)
save_figure(run, ratio_law, "ratio_law", describe_ratio_law(law), law)
ratio_law

# %% [markdown]
# ## What a kept set depends on
#
# A curated subset is a finding about the data only as far as another run would find it too. Four things are varied, each
# alone: the super-batch, the order of the stream, the sampler's chance, and the seed, that is model, order and chance
# together. The budgeted rule leaves nothing to chance and decides by what the stream has shown, not by where a batch ends:
# in an epoch of many super-batches it keeps the same pairs by any of them, but for the last few.

# %%
stability = measure_stability(reference, {one: scores[one].features for one in arm_seeds})
print(describe_stability(stability))
stability.groupby(["rule", "varied", "first", "second"], sort=False)[["jaccard", "jaccard_by_chance"]].mean().round(3)

# %% [markdown]
# ## Variants, trained
#
# What counts in the end is the model. These variants curate while the model learns, each from the same warm-up, and then
# train briefly on what they kept.

# %%
pd.DataFrame({one.name: {"varied": one.factor, "value": one.value, **one.changes} for one in trained}).T.fillna("")

# %%
train_variants(run, trained, arm_seeds, reference, device, arms_at_once)
costs = read_costs(run, [variant.arm for variant in trained], arm_seeds)
tabulate_costs(costs)

# %% [markdown]
# Zero-shot AUROC of each variant minus that of the published curator, paired by patient and seed. An interval that
# excludes zero is a difference that this study can see; one that does not is no evidence of equality.

# %%
data_set = choose_test_set(evaluation)
zero_shot = evaluate_variants(evaluation, trained, arm_seeds, arms_at_once) if labelled else pd.DataFrame()
if labelled and len(trained) > 1:
    display(list_differences(zero_shot, data_set).round(3))

# %% [markdown]
# ## C13, trained
#
# What the variants kept while the model learned, and what it came to.

# %%
kept = pd.concat([measure_variants(run, one, trained, scores[one], measure) for one in arm_seeds])
both = pd.concat([summarise_settings(kept), summarise_variants(zero_shot, data_set)], ignore_index=True)
of_trained = {name: finding for name, finding in measures.items() if name != "enrichment"}
of_trained |= {"auroc": "macro", "auroc_tail": "tail"}
shown = tabulate_settings(both, trained, of_trained, len(training))
trained_ablation = plot_curator_ablation(shown)
words = (
    f"{describe_reference(reference)}, while the model learns ({short_epochs} epochs on the kept; AUROC on {data_set})"
)
caption = describe_curator_ablation(shown, words, "over seeds (kept pairs) or over patients and seeds (AUROC)")
save_figure(run, trained_ablation, "trained_ablation", caption, shown)
trained_ablation

# %% [markdown]
# Churn between epochs of curation: how many decisions change when the pairs are scored anew.

# %%
ledgers = {(one.name, k): read_ledger(run, one.arm, k) for one in trained for k in arm_seeds}
churn = pd.concat({key: measure_churn(ledger) for key, ledger in ledgers.items()}, names=["variant", "seed", None])
if len(churn):
    display(churn.groupby(["variant", "epoch"])[["readmitted_share", "newly_dropped_share", "differ"]].mean().round(3))
else:
    print("no variant that was trained curates in more than one epoch")

# %% [markdown]
# ## What each quirk changes
#
# The corrected value of each switch minus the published one, all others as published; `jaccard` is the overlap of the two
# kept sets, to be read beside that of two runs that differ in nothing but chance. Where the quirk needs a model that
# learns, or a variant was trained anyway, the row says so.

# %%
of_set = zero_shot[zero_shot.data_set == data_set] if labelled else zero_shot
quirks = compare_quirks(stream, kept, of_set, measures)
chance = stability[(stability.varied == "chance") & (stability.rule == "published")].jaccard.mean()
print(f"two runs of the published rule that differ in chance alone overlap by {chance:.3f}")
print(describe_quirks(quirks))
lay_out_quirks(quirks)

# %% [markdown]
# The other quirks change training or evaluation and not what is kept. They are decided elsewhere:

# %%
pd.Series(ELSEWHERE, name="published, and where it is decided").to_frame()

# %%
place = f"{training.source.iloc[0]}/train"
results = add_results(run, pd.concat([list_results(stream, kept, law_by_seed, stability, place), zero_shot]))
results[results.task.str.startswith("ablation") & (results.seed == OVER_SEEDS)].groupby("task").size()

# %% [markdown]
# ## What must hold

# %%
for one in arm_seeds:
    assert list(scores[one].image_ids) == list(training.image_id), "features and cohort list other pairs"
budget = count_budget(reference.curator.budget, len(training))
ratios = pd.concat([stream[stream.setting == "rule=budgeted"], kept[kept.setting.str.startswith("budgeted")]])
assert (ratios.positives[ratios.metric == "keep_ratio"] == budget).all(), "the budgeted rule missed its budget"
same = quirks[(quirks.quirk == "F4") & (quirks.metric == "jaccard")]
assert (same.value > 0.9).all(), "k-means should not depend on scale"
budgeted = stability[stability.rule == "budgeted"]
assert (budgeted.jaccard[budgeted.varied == "chance"] == 1).all(), "the budgeted rule leaves nothing to chance"
if len(training) >= 8 * VIRTUAL_BATCH:
    assert (budgeted.jaccard[budgeted.varied == "super-batch"] > 0.8).all(), (
        "the kept set should not depend on the batch"
    )
assert (law.measure <= law.law + 2 * law.prototypes / law.super_batch).all(), "more kept than the law allows"
print(f"the budgeted rule kept {budget:,} pairs each time, by any chance the same; F4 overlap {same.value.min():.3f}")
