# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 6. The long tail
#
# **What it shows.** What curation keeps of common and rare findings, of dense and thin regions, and what a model gains or
# loses by it on each finding. On the phantom the truth is known, so it also shows what no real cohort can: whether
# near-duplicates, mismatched pairs and junk images are kept or dropped.
#
# **What it costs.** Half a minute for the default study on 2 cores. It trains nothing, but density compares every pair
# with every other: a minute a seed for 100,000 pairs on 2 cores, and at paper scale, a million pairs, minutes a seed on
# a GPU or hours without one.

# %% tags=["parameters"]
study = "demo"  # name of the study, the folder under runs/
seed = 0  # first seed of the arms, and seed of the resampling
seeds = 3  # number of seeds
baseline = "random_same_data"  # the arm that the curated one is compared with
resamples = 1000  # bootstrap resamples of patients
neighbours = 10  # neighbours of the density estimate

# %%
import numpy as np
import pandas as pd
from IPython.display import display

from chexstudy.cohort.table import finding_columns, read_cohort
from chexstudy.curation.audit import audit_arm, describe_audit, list_audit
from chexstudy.curation.doubt import score_doubt, split_features
from chexstudy.curation.ledger import read_ledger
from chexstudy.evaluation.long_tail import (
    density,
    keep_rates_of_seeds,
    list_keep_rates,
    measure_gain_trends,
    measure_prevalence,
    prevalence_tiers,
    tiers_of_pairs,
)
from chexstudy.evaluation.rare_or_wrong import list_doubt, measure_doubt
from chexstudy.evaluation.results import OVER_SEEDS, add_results, read_results
from chexstudy.notebook import start_notebook
from chexstudy.plots.audit import describe_audit as caption_audit
from chexstudy.plots.audit import plot_audit
from chexstudy.plots.density import describe_density, plot_density, select_density
from chexstudy.plots.long_tail import describe_long_tail, plot_long_tail, select_long_tail
from chexstudy.plots.style import save_figure
from chexstudy.pretraining.arms import choose_seeds, require_current_arm

run = start_notebook("06_long_tail", globals())
cohort = read_cohort(run.require("cohort.parquet", "01_build_cohort"))
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
ledgers, local, considered, scored = {}, {}, {}, {}
for one in choose_seeds(seed, seeds):
    folder = require_current_arm(run, "curated", one)
    ledger = read_ledger(run, "curated", one)
    last = (ledger.epoch == ledger.epoch.max()).to_numpy()  # the epoch that decided, where there are several
    ledger = ledger[last].set_index("image_id")
    features = run.read_array(f"{folder}/features.npy", "04_pretrain_curated")[last].astype(np.float32)
    scored[one] = features[pd.Index(ledger.index).get_indexer(train.image_id)]
    local[one] = pd.Series(density(features, neighbours), index=ledger.index).reindex(train.image_id).to_numpy()
    ledgers[one], considered[one] = ledger.reindex(train.image_id), sorted(ledger.index)
kept = {one: ledger.kept.eq(True).to_numpy() for one, ledger in ledgers.items()}
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
dropped = {one: (ledger.band == "outlier").to_numpy() for one, ledger in ledgers.items()}
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
        score_doubt(*split_features(scored[seed])),
        truth.set_index("image_id").loc[train.image_id],
        tiers_of_pairs(train, tiers),
        train.patient_id,
        np.random.default_rng(seed),
        resamples,
        ledgers[seed].band,
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
audit_figure = plot_audit(audit)
save_figure(run, audit_figure, "audit", caption_audit(audit, seed), audit.table)
audit_figure

# %% [markdown]
# ## Into the results table
#
# Keep rates, and the trend of the gain over the baseline: the slope over log10 prevalence, fitted in every resample of
# patients and seeds.

# %%
place = {"arm": "curated", "task": "curation", "data_set": f"{train.source.iloc[0]}/train", "exposure": "seen"}
keep_rows = list_keep_rates(rates).assign(**place)
trend = measure_gain_trends(run, cohort, read_results(run), baseline, prevalence, resamples=resamples, seed=seed)
audit_rows = list_audit(audit).assign(**place | {"task": "audit", "seed": seed})
doubt_rows = list_doubt(told_apart).assign(**place | {"task": "doubt", "seed": seed})
results = add_results(run, pd.concat([keep_rows, audit_rows, doubt_rows, trend], ignore_index=True))
trend

# %% [markdown]
# ## C9. Density
#
# CheXficient's claim is that a curated subset covers thin regions. Densities are drawn for the first seed, keep rates of
# density tenths for all seeds.

# %%
pairs = pd.DataFrame({"image_id": train.image_id, "kept": kept[seed], "density": local[seed]})
mapped = f"{require_current_arm(run, 'curated', seed)}/map.parquet"
if run.has(mapped):
    pairs = pairs.merge(run.read_table(mapped, "03_watch_prototypes"), on="image_id")
thin = plot_density(pairs, results)
save_figure(run, thin, "density", describe_density(pairs, results, seed), select_density(results))
thin

# %% [markdown]
# ## C10. Gain against prevalence
#
# The paired difference of each finding, against how common the finding is in training. `No Finding` is left out: it is
# no disease.

# %%
shown = (results, prevalence, baseline)
long_tail = plot_long_tail(*shown)
save_figure(run, long_tail, "long_tail", describe_long_tail(*shown), select_long_tail(*shown))
long_tail

# %% [markdown]
# ## What must hold

# %%
for one, image_ids in considered.items():
    assert image_ids == sorted(train.image_id), f"seed {one}: not every training pair was considered once"
assert rates.keep_rate.dropna().between(0, 1).all()
assert (results.seed[results.task == "curation"] == OVER_SEEDS).any()
print("every training pair was considered once a seed; keep rates carry their n and interval")
