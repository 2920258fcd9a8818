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
seeds = 3  # number of seeds
baseline = "random_same_data"  # the arm whose gains are drawn by finding
arms: list[str] = []  # arms to compare; empty for all
groupings: list[str] = []  # what patients are grouped by, also other columns; empty for sex, age, view and source
resamples = 1000  # bootstrap resamples of patients
neighbours = 10  # neighbours of the density estimate

# %%
import numpy as np
import pandas as pd
from IPython.display import display

from chexstudy.cohort.prevalence import measure_prevalence, prevalence_tiers, tiers_of_pairs
from chexstudy.cohort.pixels.store import open_pixel_store
from chexstudy.cohort.table import finding_columns, read_cohort
from chexstudy.curation.quality.audit import audit_arm, describe_audit, list_audit
from chexstudy.curation.quality.pair_mismatch import score_doubt, split_features
from chexstudy.curation.records.scored_pairs import read_scored_pairs
from chexstudy.evaluation.context import Evaluation, TrainedArm, tell_exposure
from chexstudy.evaluation.comparison.gains_by_prevalence import TREND, list_gains, measure_gains
from chexstudy.curation.quality.keep_rates import keep_rates_of_seeds, list_keep_rates
from chexstudy.curation.quality.mismatch_detection import list_doubt, measure_doubt
from chexstudy.results import OVER_SEEDS, add_results, read_results
from chexstudy.vectors.neighbours import density
from chexstudy.evaluation.image_text.retrieval_protocols import measure_retrieval_choices, tabulate_retrieval_choices
from chexstudy.evaluation.subgroups.gaps import GROUPINGS, measure_study_subgroups
from chexstudy.workflow.notebook import start_notebook
from chexstudy.plots.audit import describe_audit as caption_audit
from chexstudy.plots.audit import plot_audit
from chexstudy.plots.density import describe_density, plot_density, select_density
from chexstudy.plots.long_tail import describe_long_tail, plot_long_tail, select_long_tail
from chexstudy.plots.style import save_figure
from chexstudy.plots.subgroups import describe_subgroups, plot_subgroups, select_subgroups, tabulate_gaps
from chexstudy.pretraining.arms.definitions import choose_seeds, require_current_arm

run = start_notebook("06_long_tail", globals())
cohort = read_cohort(run.require("cohort.parquet"))
train = cohort[cohort.split == "train"].reset_index(drop=True)
prevalence = measure_prevalence(train)
tiers = prevalence_tiers(prevalence).to_dict()
truth = pd.read_parquet(run.path("truth.parquet")) if run.has("truth.parquet") else None
if not finding_columns(train):
    print("the cohort has no labels: keep rates by report and density are all there is to see")

# %% [markdown]
# ## What was kept
#
# Keep rates by finding, prevalence tier, kind of report, density and, on the phantom, truth. Enrichment is the share
# among the kept over the share among all: above 1, curation favours the group. Seed -1 is all seeds together; its
# intervals take patients and seeds as clusters.

# %%
scored = {}
for one in choose_seeds(seed, seeds):
    require_current_arm(run, "curated", one)
    scored[one] = read_scored_pairs(run, "curated", one).in_order_of(train.image_id)
kept = {one: pairs.ledger.kept.to_numpy() for one, pairs in scored.items()}
local = {one: density(pairs.features, neighbours) for one, pairs in scored.items()}
rates = keep_rates_of_seeds(train, kept, tiers=tiers, truth=truth, density=local)

# %%
shown = rates[rates.seed == OVER_SEEDS].set_index(["group_by", "group"])
spread = rates[rates.seed != OVER_SEEDS].groupby(["group_by", "group"]).keep_rate.std()
columns = ["n", "kept", "keep_rate", "ci_low", "ci_high", "enrichment"]
shown[columns].assign(spread_over_seeds=spread).round(3)

# %% [markdown]
# ## What the dropped outlier band holds
#
# The published rule throws away the farthest 5 % of each prototype. Over-representation is a group's share of that band
# over its share of all pairs.

# %%
dropped = {one: (pairs.ledger.band == "outlier").to_numpy() for one, pairs in scored.items()}
outliers = keep_rates_of_seeds(train, dropped, tiers=tiers, truth=truth)
over = outliers[outliers.seed == OVER_SEEDS].set_index(["group_by", "group"])
over = over[["n", "kept", "enrichment", "enrichment_low", "enrichment_high"]]
over.columns = ["pairs", "in the outlier band", "over-representation", "95 % from", "to"]
over.sort_values("over-representation", ascending=False).head(15).round(2)

# %% [markdown]
# ## Rare or wrong?
#
# Rare pairs and wrong ones both lie far out. The doubt about a pair asks whether its text is what pairs with such images
# say, and its image what pairs with such texts show; it is what orders the review list (`-p outlier_policy review` in
# notebook 4). Where the truth is known: how well it tells mismatched pairs and junk images from sound pairs, and from
# sound pairs with a rare finding, beside the plain agreement of image and text.

# %%
told_apart = pd.DataFrame()
if truth is not None and finding_columns(train):
    told_apart = measure_doubt(
        score_doubt(*split_features(scored[seed].features)),
        truth.set_index("image_id").loc[train.image_id],
        tiers_of_pairs(train, tiers),
        train.patient_id,
        np.random.default_rng(seed),
        resamples,
        scored[seed].ledger.band,
    )
    shown = told_apart[told_apart.score.isin(["doubt", "clip_score"]) & told_apart.among.isin(["all", "outlier"])]
    display(shown.set_index(["among", "wrong", "against", "score"]).sort_index().round(3))
else:
    print("without a known truth and labels, it cannot be said how well doubt tells rare from wrong")

# %% [markdown]
# ## Audit: is a group dropped more than chance allows?
#
# Each group is compared with all pairs outside it by exchanging decisions between patients, corrected for the number of
# groups. That pairs without a finding are dropped is what curation means to do; any other warning wants an explanation.
# `alike` compares within pairs with and without a finding, which explains away what follows from that alone. The first
# seed; `chexstudy curate --report` gives the others.

# %%
audit = audit_arm(run, "curated", seed, resamples)
print(describe_audit(audit))

# %%
if len(audit.table):
    audit_figure = plot_audit(audit)
    save_figure(run, audit_figure, "audit", caption_audit(audit, seed), audit.table)
    display(audit_figure)

# %% [markdown]
# ## What is gained, by prevalence
#
# Paired differences from every other arm on each test set, in AUROC, in AUPRC and in two measures that relate AUPRC to
# the share of positives, on which it depends: normalised AUPRC, the part reached of what can be reached, and doublings
# over a blind model. On the enriched test every finding has 30 positives or more, on the natural one the rare have a
# few; compare AUPRC within a test set only. The trend is the slope of the gain over log10 prevalence in training.

# %%
others = [arm for arm in arms if arm != "curated"]
gains = measure_gains(
    run, cohort, read_results(run), prevalence, baselines=others, tiers=tiers, resamples=resamples, seed=seed
)
if len(gains):
    trends = gains[gains.finding == TREND].set_index(["data_set", "metric", "reference"])
    display(trends[["value", "ci_low", "ci_high", "n"]].sort_index().round(3))
    of_arm = gains[(gains.reference == baseline) & (gains.metric == "auprc") & (gains.positives >= 0)]
    columns = ["prevalence", "test_prevalence", "first", "second", "value", "ci_low", "ci_high", "positives"]
    display(of_arm.set_index(["data_set", "tier", "finding"])[columns].round(3))
else:
    print("the arms were not compared on labelled test sets: there is no gain to hold against prevalence")

# %% [markdown]
# ## Subgroups
#
# Groups are compared on the findings that five patients have and five lack in every group. Each group is held against
# the mean of the others, and the gap is that between worst and best; both again at one mix of findings, because older
# patients and bedside films come with more disease. TPR and FPR are taken at thresholds carried from validation.

# %%
subgroup_rows, cells = measure_study_subgroups(
    run, cohort, read_results(run), arms=arms, names=groupings or GROUPINGS, resamples=resamples, seed=seed
)
if len(cells):
    by_group = cells.groupby(["data_set", "grouping", "group"], sort=False)
    counts = by_group.agg(evaluable=("evaluable", "sum"), compared=("compared", "sum"), left_out=("left_out", "first"))
    display(counts.assign(not_evaluable=len(finding_columns(train)) - counts.evaluable))
else:
    print("no arm was evaluated on labelled test sets: subgroups cannot be compared")

# %% [markdown]
# Cells that cannot be evaluated: fewer than five patients with the finding, or without it.

# %%
if len(cells):
    too_few = cells[~cells.evaluable.astype(bool)].groupby(["data_set", "grouping", "group"]).finding.agg(", ".join)
    display(too_few.to_frame("not evaluable"))

# %% [markdown]
# ## What the protocol of retrieval does to its numbers
#
# The curated arm of the first seed on the largest test set: which part of the report is the text, where the reports have
# the parts, and what identical texts count as.

# %%
test = cohort[cohort.split == "test"]
test = test[test.source == test.source.mode()[0]] if len(test) else test
choices = pd.DataFrame()
if len(test) and (test.report.str.strip() != "").any():
    evaluation = Evaluation(run, cohort, open_pixel_store(run), resamples, seed)
    choices = measure_retrieval_choices(TrainedArm(evaluation, "curated", seed), test)
    display(tabulate_retrieval_choices(choices).round(3))
else:
    print("the test set has no reports: there is nothing to retrieve")

# %% [markdown]
# ## Into the results table

# %%
of_curation = {"arm": "curated", "task": "curation", "data_set": f"{train.source.iloc[0]}/train", "exposure": "seen"}
tables = [list_keep_rates(rates).assign(**of_curation), list_gains(gains), subgroup_rows]
tables.append(list_audit(audit).assign(**of_curation | {"task": "audit", "seed": seed}))
tables.append(list_doubt(told_apart).assign(**of_curation | {"task": "doubt", "seed": seed}))
if len(choices):
    place = {"data_set": f"{test.source.iloc[0]}/test", "exposure": tell_exposure(run, "curated", seed)}
    tables.append(choices.assign(**place))
results = add_results(run, pd.concat([table for table in tables if len(table)], ignore_index=True))
results[results.task.isin(["gain_trend", "subgroup_gap"])].groupby(["task", "metric"]).size()

# %% [markdown]
# ## C9. Density
#
# CheXficient's claim is that a curated subset covers thin regions. Densities are drawn for the first seed, keep rates of
# density tenths for all seeds.

# %%
pairs = pd.DataFrame({"image_id": train.image_id, "kept": kept[seed], "density": local[seed]})
mapped = f"{require_current_arm(run, 'curated', seed)}/map.parquet"
if run.has(mapped):
    pairs = pairs.merge(run.read_table(mapped), on="image_id")
thin = plot_density(pairs, results)
save_figure(run, thin, "density", describe_density(pairs, results, seed), select_density(results))
thin

# %% [markdown]
# ## C10. Gain against prevalence
#
# The paired difference of each finding, against how common the finding is in training, in AUROC and AUPRC. `No Finding`
# is left out: it is no disease. Tiers are those of CXR-LT: above 10 % of the training images, 1 to 10 %, below 1 %.

# %%
shown = (results, prevalence, baseline)
long_tail = plot_long_tail(*shown)
save_figure(run, long_tail, "long_tail", describe_long_tail(*shown), select_long_tail(*shown))
long_tail

# %% [markdown]
# ## Gaps between subgroups
#
# A gap is never zero, for the largest of several noisy differences is not; read its interval. It widens by curation
# where the last panel's interval lies above zero.

# %%
if len(subgroup_rows):
    subgroups = plot_subgroups(results)
    save_figure(run, subgroups, "subgroups", describe_subgroups(results), select_subgroups(results))
    display(subgroups, tabulate_gaps(results))
else:
    print("no two subgroups can be compared: no finding has five patients with it and five without in every group")

# %% [markdown]
# ## What must hold

# %%
assert rates.keep_rate.dropna().between(0, 1).all()
assert (results.seed[results.task == "curation"] == OVER_SEEDS).any()
gaps = results[results.metric.str.endswith("auroc_gap")]
assert (gaps.value <= 0).all(), "the worst group is better than the best"
assert (cells.n >= cells.positives).all() if len(cells) else True
print("keep rates carry their n and interval; no gap between subgroups is above zero")
