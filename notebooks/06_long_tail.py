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
# **What it costs.** Half a minute for the default study on 2 cores; the same at paper scale, for it reads only artifacts.

# %% tags=["parameters"]
study = "demo"  # name of the study, the folder under runs/
seed = 0  # first seed of the arms, and seed of the resampling
seeds = 3  # number of seeds
arm = "curated"  # the arm that is looked at
baseline = "random_same_data"  # the arm it is compared with
resamples = 1000  # bootstrap resamples of patients
neighbours = 10  # neighbours of the density estimate

# %%
import numpy as np
import pandas as pd

from chexstudy.cohort.table import read_cohort
from chexstudy.evaluation.long_tail import density, keep_rates, list_keep_rates, measure_prevalence, prevalence_tiers
from chexstudy.evaluation.results import add_results, read_results
from chexstudy.notebook import start_notebook
from chexstudy.plots.density import describe_density, plot_density, select_density
from chexstudy.plots.long_tail import describe_long_tail, plot_long_tail, select_gains
from chexstudy.plots.style import save_figure
from chexstudy.pretraining.arms import arm_folder

run = start_notebook("06_long_tail", globals())
cohort = read_cohort(run.require("cohort.parquet", "01_build_cohort"))
train = cohort[cohort.split == "train"].reset_index(drop=True)
prevalence = measure_prevalence(train)
tiers = prevalence_tiers(prevalence).to_dict()
truth = pd.read_parquet(run.path("truth.parquet")) if run.has("truth.parquet") else None

# %% [markdown]
# ## What was kept
#
# Keep rates by finding, prevalence tier, kind of report, density and, on the phantom, truth. Enrichment is the share
# among the kept over the share among all: above 1, curation favours the group.

# %%
tables = []
for one_seed in range(seed, seed + seeds):
    folder = arm_folder(arm, one_seed)
    ledger = run.read_table(f"{folder}/ledger.parquet", "04_pretrain_curated").set_index("image_id")
    features = run.read_array(f"{folder}/features.npy", "04_pretrain_curated").astype(np.float32)
    local = pd.Series(density(features, neighbours), index=ledger.index)[train.image_id].to_numpy()
    rates = keep_rates(train, set(ledger.index[ledger.kept]), tiers=tiers, truth=truth, density=local)
    tables.append(rates.assign(seed=one_seed))
rates = pd.concat(tables, ignore_index=True)

# %%
mean = rates.groupby(["group_by", "group"], sort=False)[["n", "kept", "keep_rate", "enrichment"]].mean()
mean.assign(spread_over_seeds=rates.groupby(["group_by", "group"], sort=False).keep_rate.std()).round(3)

# %% [markdown]
# ## What the dropped outlier band holds
#
# The published rule throws away the farthest 5 % of each prototype. Over-representation is a group's share of that band
# over its share of all pairs.

# %%
outliers = []
for one_seed in range(seed, seed + seeds):
    ledger = run.read_table(f"{arm_folder(arm, one_seed)}/ledger.parquet", "04_pretrain_curated")
    dropped = set(ledger.image_id[ledger.band == "outlier"])
    outliers.append(keep_rates(train, dropped, tiers=tiers, truth=truth).assign(seed=one_seed))
outliers = pd.concat(outliers, ignore_index=True)
over = outliers.groupby(["group_by", "group"], sort=False)[["n", "kept", "enrichment"]].mean()
over.columns = ["pairs", "in the outlier band", "over-representation"]
over.sort_values("over-representation", ascending=False).head(15).round(2)

# %% [markdown]
# ## Into the results table

# %%
rows = pd.concat([list_keep_rates(table).assign(seed=one, arm=arm) for one, table in rates.groupby("seed")])
results = add_results(run, rows.assign(task="curation", data_set=f"{train.source.iloc[0]}/train", exposure="seen"))

# %% [markdown]
# ## C9. Density
#
# CheXficient's claim is that a curated subset covers thin regions. Drawn for the first seed's map; keep rates of density
# tenths over all seeds.

# %%
first = arm_folder(arm, seed)
ledger = run.read_table(f"{first}/ledger.parquet", "04_pretrain_curated")
features = run.read_array(f"{first}/features.npy", "04_pretrain_curated").astype(np.float32)
pairs = ledger[["image_id", "kept"]].assign(density=density(features, neighbours))
if run.has(f"{first}/map.parquet"):
    pairs = pairs.merge(run.read_table(f"{first}/map.parquet", "03_watch_prototypes"), on="image_id")
thin = plot_density(pairs, results)
save_figure(run, thin, "density", describe_density(pairs, results), select_density(results))
thin

# %% [markdown]
# ## C10. Gain against prevalence
#
# The paired difference of each finding, against how common the finding is in training.

# %%
gains = select_gains(read_results(run), prevalence, baseline)
long_tail = plot_long_tail(read_results(run), prevalence, baseline)
save_figure(run, long_tail, "long_tail", describe_long_tail(read_results(run), prevalence, baseline), gains)
long_tail

# %% [markdown]
# ## What must hold

# %%
everything = rates[rates.group_by == "all"]
assert (everything.n == len(train)).all(), "not every training pair was considered"
assert rates.keep_rate.dropna().between(0, 1).all()
print("every training pair was considered once a seed; keep rates carry their n and interval")
