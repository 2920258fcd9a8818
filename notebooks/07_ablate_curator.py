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
# **What it shows.** What each constant of the curator, and each deviation of the published code, changes: prototypes, bands,
# cap, sampler, update, warm-up, super-batch, outliers, rule and epochs of curation, by their effect on the fraction selected, on
# rare findings, on duplicates and wrong pairs, and for a chosen few on zero-shot AUROC. And that the fraction the published
# rule selects is a law of its constants, while the budgeted rule keeps what it is asked for, whatever the batch.
#
# **What it costs.** About six minutes for the default study on 2 cores, five of them for 27 short trainings and their
# evaluation. Every setting compares every pair with every other: a minute for 4,000 pairs and 3 seeds, hours on a GPU at
# paper scale, and there a training each variant and seed beside.

# %% tags=["parameters"]
study = "demo"  # name of the study, the folder under runs/
change = False  # give the study other values than it has, and tell what is stale from then on
seed = 0  # first seed of the models and of the resampling
seeds = 5  # number of seeds; settings are paired by seed
variants: list[str] = []  # variants to train beside the published curator; empty for all
short_epochs = 4  # epochs over the kept pairs in the trainings of this notebook
resamples = 1000  # bootstrap resamples of patients
device = "auto"  # auto, cpu or cuda
arms_at_once = 2  # arms trained side by side; 1 on a GPU

# %%
from chexstudy.plots import figures
from chexstudy.results import OVER_SEEDS, add_results
from chexstudy.study import open_study

study = open_study("07_ablate_curator", globals())

# %% [markdown]
# ## The same features for all settings
#
# The training pairs of each seed are embedded once, by the warm-up that all its arms share. On these features, which do
# not change, the curator runs as a stream: every setting meets the same pairs in the same order. The reference is the
# published curator at this study's sizes.

# %%
from dataclasses import replace

from chexstudy.experiments.curator_ablation import describe_reference, list_settings, take_reference
from chexstudy.pretraining.training.scoring import score_training_pairs

reference = take_reference(replace(study.config, subset_epochs=short_epochs))
scores = {one: score_training_pairs(study.run, one, reference, device) for one in study.seeds}
settings = list_settings(reference, len(study.train))
print(f"{len({one.name for one in settings})} settings around {describe_reference(reference)}")

# %% [markdown]
# ## C13. One constant at a time
#
# Whatever keeps more keeps more of the rare, and of the wrong. The column of the tail over chance takes that out: it is
# the fraction selected of pairs with a finding of the tail, over that of all.

# %%
import pandas as pd

from chexstudy.experiments.curator_ablation import (
    KeptMeasure,
    choose_measures,
    measure_settings,
    summarise_settings,
    tabulate_settings,
)

measure = KeptMeasure(study.train, study.tiers, study.truth, resamples, seed)
measures = choose_measures(study.truth is not None)
stream = pd.concat([measure_settings(study.run, one, settings, reference, scores[one], measure) for one in study.seeds])
table = tabulate_settings(summarise_settings(stream), settings, measures, len(study.train))
words = f"{describe_reference(reference)}, on features of the warm-up, which do not change"
figures.curator_ablation.show(study, table, reference=words, over="over seeds")

# %% [markdown]
# How far each constant moves each measure, as the highest minus the lowest mean among its settings:

# %%
from chexstudy.experiments.curator_ablation import describe_ranking, rank_factors

ranks = rank_factors(table)
print(describe_ranking(ranks))
ranks.round(3)

# %% [markdown]
# ## The ratio law
#
# By the published rule each prototype keeps a tenth of its members (the support band) and at most `central_cap` central
# ones. So the fraction selected of a super-batch of B pairs is 0.10 + cap x K / B, and less only where prototypes have fewer
# central members than the cap. The data do not enter.

# %%
from chexstudy.experiments.selection_stability import average_ratio_law, measure_ratio_law

law_by_seed = pd.concat([measure_ratio_law(reference, scores[one].features, one) for one in study.seeds])
law = average_ratio_law(law_by_seed)
figures.ratio_law.show(study, law)

# %% [markdown]
# ## What a kept set depends on
#
# A curated subset is a finding about the data only as far as another run would find it too. Four things are varied, each
# alone: the super-batch, the order of the stream, the sampler's chance, and the seed, that is model, order and chance
# together. The budgeted rule leaves nothing to chance and decides by what the stream has shown, not by where a batch ends:
# in an epoch of many super-batches it keeps the same pairs by any of them, but for the last few.

# %%
from chexstudy.experiments.selection_stability import describe_stability, measure_stability

stability = measure_stability(reference, {one: scores[one].features for one in study.seeds})
print(describe_stability(stability))
stability.groupby(["rule", "varied", "first", "second"], sort=False)[["jaccard", "jaccard_by_chance"]].mean().round(3)

# %% [markdown]
# ## Variants, trained
#
# What counts in the end is the model. These variants curate while the model learns, each from the same warm-up, and then
# train briefly on what they kept.

# %%
from chexstudy.experiments.trained_variants import choose_variants, train_variants

trained = choose_variants(variants, reference)
pd.DataFrame({one.name: {"varied": one.factor, "value": one.value, **one.changes} for one in trained}).T.fillna("")

# %%
from chexstudy.pretraining.arms.definitions import read_costs, tabulate_costs

train_variants(study.run, trained, study.seeds, reference, device, arms_at_once)
tabulate_costs(read_costs(study.run, [variant.arm for variant in trained], study.seeds))

# %% [markdown]
# Zero-shot AUROC of each variant minus that of the published curator, paired by patient and seed. An interval that
# excludes zero is a difference that this study can see; one that does not is no evidence of equality.

# %%
from chexstudy.experiments.trained_variants import evaluate_variants, list_differences

evaluation = study.evaluation(probe=False)
data_set = evaluation.main_test_set()
zero_shot = evaluate_variants(evaluation, trained, study.seeds, arms_at_once)
list_differences(zero_shot, data_set).round(3)

# %% [markdown]
# ## C13, trained
#
# What the variants kept while the model learned, and what it came to.

# %%
from chexstudy.experiments.trained_variants import measure_variants, summarise_variants

kept = pd.concat([measure_variants(study.run, one, trained, scores[one], measure) for one in study.seeds])
both = pd.concat([summarise_settings(kept), summarise_variants(zero_shot, data_set)], ignore_index=True)
of_trained = {name: finding for name, finding in measures.items() if name != "enrichment"}
of_trained |= {"auroc": "macro", "auroc_tail": "tail"}
shown = tabulate_settings(both, trained, of_trained, len(study.train))
words = (
    f"{describe_reference(reference)}, while the model learns ({short_epochs} epochs on the kept; AUROC on {data_set})"
)
over = "over seeds (kept pairs) or over patients and seeds (AUROC)"
figures.trained_ablation.show(study, shown, reference=words, over=over)

# %% [markdown]
# Churn between epochs of curation: how many decisions change when the pairs are scored anew; empty where no variant that
# was trained curates in more than one epoch.

# %%
from chexstudy.experiments.trained_variants import summarise_churn

summarise_churn(study.run, trained, study.seeds).round(3)

# %% [markdown]
# ## What each deviation of the published code changes
#
# The corrected value of each switch minus the published one, all others as published; `jaccard` is the overlap of the two
# kept sets, to be read beside that of two runs that differ in nothing but chance. Where it takes a model that learns, or
# a variant was trained anyway, the row says so. The numbers F1 to F14 are those of `docs/published.md`.

# %%
from chexstudy.experiments.published_vs_fixed import ELSEWHERE, compare_quirks, describe_quirks, lay_out_quirks

quirks = compare_quirks(stream, kept, zero_shot[zero_shot.data_set == data_set], measures)
chance = stability[(stability.varied == "chance") & (stability.rule == "published")].jaccard.mean()
print(f"two runs of the published rule that differ in chance alone overlap by {chance:.3f}")
print(describe_quirks(quirks))
lay_out_quirks(quirks)

# %% [markdown]
# The others change training or evaluation and not what is kept. They are decided elsewhere:

# %%
pd.Series(ELSEWHERE, name="published, and where it is decided").to_frame()

# %%
from chexstudy.experiments.curator_ablation import list_results

place = f"{study.train.source.iloc[0]}/train"
measured = [list_results(stream, kept, law_by_seed, stability, place), zero_shot]
results = add_results(study.run, pd.concat([table for table in measured if len(table)]))
results[results.seed == OVER_SEEDS].groupby("task").size()

# %% [markdown]
# ## What must hold

# %%
from chexstudy.curation.choice import count_budget

budget = count_budget(reference.curator.budget, len(study.train))
ratios = pd.concat([stream[stream.setting == "rule=budgeted"], kept[kept.setting.str.startswith("budgeted")]])
assert (ratios.positives[ratios.metric == "keep_ratio"] == budget).all(), "the budgeted rule missed its budget"
budgeted = stability[stability.rule == "budgeted"]
assert (budgeted.jaccard[budgeted.varied == "chance"] == 1).all(), "the budgeted rule leaves nothing to chance"
assert (law.measure <= law.law + 2 * law.prototypes / law.super_batch).all(), "more kept than the law allows"
of_batch = budgeted.jaccard[budgeted.varied == "super-batch"]
print(f"The budgeted rule kept {budget:,} pairs each time, by any chance the same.")
print(f"From one super-batch to another it keeps the same pairs up to a Jaccard index of {of_batch.mean():.3f}.")
print(
    f"The published rule selects {law.measure.min():.1%} to {law.measure.max():.1%}, at most {(law.measure - law.law).max():+.3f} off its law."
)
