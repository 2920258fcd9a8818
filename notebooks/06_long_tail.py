# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 6. The long tail and the subgroups
#
# **What it shows.** What curation keeps of common and rare findings, of dense and thin regions, and what a model gains or
# loses by it on each finding; whether women and men, young and old, and the views are served equally well, and whether
# curation changes that. On the phantom the truth is known, so it also shows what no real cohort can: whether
# near-duplicates, mismatched pairs and junk images are kept or dropped.
#
# **What it costs.** 45 seconds for the default study on 2 cores. It trains nothing, but density compares every pair
# with every other: a minute a seed for 100,000 pairs on 2 cores, and at paper scale, a million pairs, minutes a seed on
# a GPU or hours without one.

# %% tags=["parameters"]
study = "demo"  # name of the study, the folder under runs/
change = False  # give the study other values than it has, and tell what is stale from then on
seed = 0  # first seed of the arms, and seed of the resampling
seeds = 5  # number of seeds
baseline = "random_same_data"  # the arm whose gains are drawn by finding
arms: list[str] = []  # arms to compare; empty for all
groupings: list[str] = []  # what patients are grouped by, also other columns; empty for sex, age, view and source
resamples = 1000  # bootstrap resamples of patients
neighbours = 10  # neighbours of the density estimate

# %%
from chexstudy.plots import figures
from chexstudy.results import OVER_SEEDS, add_results, read_results
from chexstudy.study import open_study

study = open_study("06_long_tail", globals())

# %% [markdown]
# ## What was kept
#
# Keep rates by finding, prevalence tier, kind of report, density and, on the phantom, truth. Enrichment is the fraction
# among the kept over the fraction among all: above 1, curation favours the group. Seed -1 is all seeds together; its
# intervals take patients and seeds as clusters. The filtered arm, where it is trained, is measured beside the curated.

# %%
from itertools import product

from chexstudy.cohort.quality import lacks_report
from chexstudy.curation.quality.keep_rates import measure_keep_rates
from chexstudy.curation.records.ledger import read_scored_pairs
from chexstudy.pretraining.arms.definitions import require_current_arm
from chexstudy.vectors.neighbours import density

# Images without a report are no pairs, and were not scored.
train = study.train[~lacks_report(study.train)].reset_index(drop=True)
curating = ["curated", *["filtered"] * ("filtered" in study.arms)]
scored = {arm: {} for arm in curating}
for arm, one in product(curating, study.seeds):
    require_current_arm(study.run, arm, one)
    scored[arm][one] = read_scored_pairs(study.run, arm, one).in_order_of(train.image_id)
kept = {arm: {one: pairs.ledger.kept.to_numpy() for one, pairs in scored[arm].items()} for arm in curating}
local = {one: density(pairs.features, neighbours) for one, pairs in scored["curated"].items()}
known = {"tiers": study.tiers, "truth": study.truth}
rates = {arm: measure_keep_rates(train, kept[arm], **known) for arm in curating[1:]}
rates["curated"] = measure_keep_rates(train, kept["curated"], density=local, **known)

# %%
shown = {arm: own[own.seed == OVER_SEEDS].set_index(["group_by", "group"]) for arm, own in rates.items()}
deviation = rates["curated"][rates["curated"].seed != OVER_SEEDS].groupby(["group_by", "group"]).keep_rate.std()
columns = ["n", "kept", "keep_rate", "ci_low", "ci_high", "enrichment"]
beside = {f"{arm}: keep_rate": shown[arm].keep_rate for arm in curating[1:]}
shown["curated"][columns].assign(standard_deviation_over_seeds=deviation, **beside).round(3)

# %% [markdown]
# ## What the dropped outlier band holds
#
# The published rule throws away the farthest 5 % of each prototype. Over-representation is a group's fraction of that
# band over its fraction of all pairs.

# %%
from chexstudy.curation.quality.keep_rates import tabulate_band

band = {arm: {one: pairs.ledger.band for one, pairs in scored[arm].items()} for arm in curating}
outliers = {one: (of_seed == "outlier").to_numpy() for one, of_seed in band["curated"].items()}
tabulate_band(measure_keep_rates(train, outliers, **known)).head(15).round(2)

# %% [markdown]
# ## What the mismatch filter sets aside
#
# The filtered arm sees super-batches of the same size, first sets aside the pairs whose report rather belongs to another
# image, and keeps as many of the others. Wrong pairs should be over-represented in that band; rare findings, healthy
# patients and some kind of report should not. While matched pairs cannot be told from shuffled ones the filter abstains
# and the band is empty.

# %%
aside = {one: (of_seed == "mismatched").to_numpy() for one, of_seed in band.get("filtered", {}).items()}
set_aside = tabulate_band(measure_keep_rates(train, aside, **known)) if aside else None
set_aside if aside else print("The filtered arm is not among those compared.")

# %% [markdown]
# ## Label noise: rare or wrong?
#
# Rare pairs and wrong ones both lie far out. The image-text mismatch score of a pair asks whether its text is what pairs
# with such images say, and its image what pairs with such texts show; it is what orders the review list
# (`-p outlier_policy review`). Where the truth is known: how well it tells mismatched pairs and junk images from sound
# pairs, and from sound pairs with a rare finding, beside the plain agreement of image and text.

# %%
import numpy as np

from chexstudy.cohort.prevalence import tiers_of_pairs
from chexstudy.curation.quality.mismatch_detection import measure_detection, tabulate_detection
from chexstudy.curation.quality.pair_mismatch import score_mismatch

first = scored["curated"][seed]
told_apart = measure_detection(
    score_mismatch(first.features), study.truth, tiers_of_pairs(train, study.tiers),
    train.patient_id, np.random.default_rng(seed), resamples, first.ledger.band,
)  # fmt: skip
tabulate_detection(told_apart).round(3)

# %% [markdown]
# ## Audit: is a group dropped more than chance allows?
#
# Each group is compared with all pairs outside it by exchanging decisions between patients, corrected for the number of
# groups. That pairs without a finding are dropped is what curation means to do; any other warning wants an explanation.
# `alike` compares within pairs with and without a finding, which explains away what follows from that alone. The first
# seed; `chexstudy curate --report` gives the others. Last comes the mismatch filter by itself: kept is what it let pass.

# %%
from chexstudy.curation.quality.audit import audit_arm, audit_selection, describe_audit

audits = {arm: audit_arm(study.run, arm, seed, resamples) for arm in curating}
audit = audits["curated"]
print(describe_audit(audit))

# %%
if aside:
    print(describe_audit(audits["filtered"]))
if aside and aside[seed].any():
    passing = audit_selection(train, ~aside[seed], np.random.default_rng(seed), resamples, study.truth)
    print(f"\nThe mismatch filter alone.\n{describe_audit(passing)}")

# %%
figures.audit.show(study, audit, seed=seed)

# %% [markdown]
# ## What is gained, by prevalence
#
# Paired differences from every other arm on each test set, in AUROC, in AUPRC and in two measures that relate AUPRC to
# the share of positives, on which it depends: normalised AUPRC, the part reached of what can be reached, and doublings
# over a blind model. On the enriched test every finding has 30 positives or more, on the natural one the rare have a
# few; compare AUPRC within a test set only. The trend is the slope of the gain over log10 prevalence in training.

# %%
from chexstudy.evaluation.comparison.gains_by_prevalence import measure_gains, tabulate_gains, tabulate_trends

evaluation, measured = study.evaluation(), read_results(study.run)
gains = measure_gains(evaluation, measured, [arm for arm in arms if arm != "curated"])
tabulate_trends(gains).round(3)

# %%
tabulate_gains(gains, baseline).round(3)

# %% [markdown]
# ## Subgroups
#
# Groups are compared on the findings that five patients have and five lack in every group. Each group is held against
# the mean of the others, and the gap is that between worst and best; both again at one mix of findings, because older
# patients and bedside films come with more disease. TPR and FPR are taken at thresholds carried from validation. Not
# evaluable are findings with fewer than five patients with it, or without it; they are named in the last column.

# %%
from chexstudy.evaluation.subgroups.gaps import GROUPINGS, count_cells, measure_study_subgroups

subgroup_rows, cells = measure_study_subgroups(evaluation, measured, arms, groupings or GROUPINGS)
count_cells(cells, study.findings)

# %% [markdown]
# ## What the protocol of retrieval does to its numbers
#
# The curated arm of the first seed on the largest test set: which part of the report is the text, where the reports have
# the parts, and what identical texts count as.

# %%
from chexstudy.evaluation.image_text.retrieval_protocols import measure_study_retrieval, tabulate_retrieval_choices

choices = measure_study_retrieval(evaluation, "curated", seed)
tabulate_retrieval_choices(choices).round(3)

# %% [markdown]
# ## Into the results table

# %%
import pandas as pd

from chexstudy.curation.quality.audit import list_audit
from chexstudy.curation.quality.keep_rates import list_keep_rates
from chexstudy.curation.quality.mismatch_detection import list_detection
from chexstudy.evaluation.comparison.gains_by_prevalence import list_gains

tables = [list_detection(told_apart).assign(task="mismatch_detection", seed=seed, arm="curated")]
for arm in curating:
    tables.append(list_keep_rates(rates[arm]).assign(task="curation", arm=arm))
    tables.append(list_audit(audits[arm]).assign(task="audit", seed=seed, arm=arm))
tables = [table.assign(data_set=f"{train.source.iloc[0]}/train", exposure="seen") for table in tables]
tables += [list_gains(gains), subgroup_rows, choices]
add_results(study.run, pd.concat([table for table in tables if len(table)], ignore_index=True))
results = read_results(study.run)
results[results.task.isin(["gain_trend", "subgroup_gap"])].groupby(["task", "metric"]).size()

# %% [markdown]
# ## C9. Density
#
# CheXficient's claim is that a curated subset covers thin regions. Densities are drawn for the first seed, keep rates of
# density tenths for all seeds.

# %%
from chexstudy.curation.records.ledger import add_map

pairs = pd.DataFrame({"image_id": train.image_id, "kept": kept["curated"][seed], "density": local[seed]})
figures.density.show(study, add_map(study.run, pairs, "curated", seed), results, seed=seed)

# %% [markdown]
# ## C10. Gain against prevalence
#
# The paired difference of each finding, against how common the finding is in training, in AUROC and AUPRC. `No Finding`
# is left out: it is no disease. Tiers are those of CXR-LT: above 10 % of the training images, 1 to 10 %, below 1 %.

# %%
figures.long_tail.show(study, results, study.prevalence, baseline)

# %% [markdown]
# ## Gaps between subgroups
#
# A gap is never zero, for the largest of several noisy differences is not; read its interval. It widens by curation
# where the last panel's interval lies above zero.

# %%
figures.subgroups.show(study, results)

# %%
from chexstudy.plots.subgroups import tabulate_gaps

tabulate_gaps(results)

# %% [markdown]
# ## What must hold

# %%
assert all(own.keep_rate.dropna().between(0, 1).all() for own in rates.values())
for one in study.seeds:
    assert len({int(kept[arm][one].sum()) for arm in curating}) == 1, "the filtered arm kept more or fewer pairs"
by_enrichment = shown["curated"].enrichment.dropna().sort_values()
for (kind, group), enrichment in [*by_enrichment.tail(3).items(), *by_enrichment.head(3).items()]:
    print(f"{kind}, {group}: {enrichment:.2f} times its fraction of all pairs among the kept.")
