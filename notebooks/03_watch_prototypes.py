# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 3. Watch the prototypes
#
# **What it shows.** The curator at work: prototypes start at k-means centres, move with every super-batch, and divide
# the pairs around them into three bands. By the published rule the central band is thinned by farthest-point selection,
# the support band is kept, and the outlier band is dropped, although it is the farthest. In JupyterLab the map can be
# walked through: a slider over snapshots, and for every pair its radiograph, band and the reason of its decision.
#
# **What it costs.** Under two minutes for the default study on 2 cores (one curated arm and its maps); at paper scale
# the curated arm of notebook 4, about 70 H100-hours, and some ten minutes of mapping for each 100,000 pairs.

# %% tags=["parameters"]
study = "demo"  # name of the study, the folder under runs/
change = False  # give the study other values than it has, and tell what is stale from then on
seed = 0  # seed of the curated arm and of the map
device = "auto"  # auto, cpu or cuda
show_reports = False  # show report texts in the explorer

# %%
from chexstudy.plots import figures
from chexstudy.study import open_study

study = open_study("03_watch_prototypes", globals())

# %% [markdown]
# ## Train the curated arm
#
# Each super-batch is scored without gradient, the curator chooses, and the model is trained on the chosen pairs alone.
# Every decision goes into the ledger with its grounds. `chexstudy why IMAGE_ID` tells the story of one pair in words.
# Notebook 4 takes this arm as it is.

# %%
from chexstudy.curation.records.ledger import read_scored_pairs
from chexstudy.pretraining.arms.definitions import arm_folder
from chexstudy.pretraining.arms.worker_pool import train_arms

train_arms(study.run, ["curated"], [seed], study.config, device)
folder, scored = arm_folder("curated", seed), read_scored_pairs(study.run, "curated", seed)
ledger, last = scored.ledger, scored.in_last_epoch()
decisions = last.ledger
decisions.drop(columns="image_id").head()

# %% [markdown]
# ## What each band kept
#
# The fraction selected by the published rule is a property of the design, not of the data: about 0.10 + cap x K / B,
# where B is the super-batch (and 0.05 more where outliers are kept). The budgeted rule selects what was asked for.

# %%
import numpy as np

from chexstudy.curation.online.configuration import expected_fraction
from chexstudy.curation.records.ledger import summarise_bands

sizes = decisions.groupby("step").size()
expected = np.average(expected_fraction(study.config.curator, sizes), weights=sizes)
print(
    f"{decisions.kept.mean():.1%} of {len(decisions):,} pairs selected; "
    f"by the {study.config.curator.rule} rule {expected:.1%} are expected"
)
summarise_bands(decisions)

# %% [markdown]
# Why pairs were kept or dropped, in the words of the ledger:

# %%
decisions.reason.value_counts().loc[lambda pairs: pairs > 0].rename("pairs").to_frame()

# %% [markdown]
# ## The map of all pairs
#
# UMAP is fitted once on the features at which the pairs were scored (in the last epoch of curation); prototypes are
# placed between their nearest pairs. A pair lies where it was when it was scored. The model goes on learning while it
# curates, so the space drifts under the map, and prototypes, which keep nine tenths of themselves at every step, lag
# behind: pairs of late super-batches can lie away from all of them. That is the published rule seen from above, not an
# error of the map.

# %%
from chexstudy.vectors.umap import read_or_fit_map, trace_prototypes

features = scored.features.astype(np.float32)
snapshots = study.run.read_array(f"{folder}/prototypes.npy")
steps = study.run.read_table(f"{folder}/snapshots.parquet")
inputs = (f"{folder}/features.npy", f"{folder}/ledger.parquet")
coordinates = read_or_fit_map(study.run, f"{folder}/map.parquet", decisions.image_id, last.features, seed, inputs)
pairs = decisions.merge(coordinates, on="image_id")
final = trace_prototypes(snapshots, steps, last.features, coordinates[["x", "y"]].to_numpy())

# %% [markdown]
# ## C1. Framework and prototype regions
#
# CheXficient, Figure 1a and b, with this study's own pairs. In the published sketch the farthest samples are the ones
# that are prioritised; in the published code, and so here, the farthest 5 % of each prototype are dropped.

# %%
figures.framework.show(study, pairs, final, study.read_image, seed=seed)

# %% [markdown]
# ## Maps of the stages, each started from the one before
#
# What one map cannot show is the drift itself. So every stretch of super-batches (or, where there are several, every
# epoch of curation) has a map of its own. Fitted apart, maps of nearly the same pairs can differ by any turn and any
# arrangement; here each starts from the one before, and a stretch is mapped together with the stretch before it, so
# that pairs which are on both stay near their places. `trustworthiness` says how far neighbours on a map are
# neighbours in feature space (1 is best), `moved` how far shared pairs moved, as a share of the map's radius.

# %%
from chexstudy.curation.records.stage_maps import (
    join_stage_maps,
    measure_stage_maps,
    plan_stages,
    read_or_fit_stage_maps,
    trace_over_stages,
)

stages, inputs = plan_stages(ledger), (*inputs, f"{folder}/map.parquet")
first = coordinates.set_index("image_id").loc[ledger.image_id.iloc[stages[0].rows], ["x", "y"]].to_numpy()
stored = f"{folder}/stage_maps.parquet"
maps = read_or_fit_stage_maps(study.run, stored, ledger, features, stages, seed, inputs, first)
staged = join_stage_maps(ledger, maps)
trajectory = trace_over_stages(snapshots, steps, stages, features, maps)
study.run.write_table(f"{folder}/trajectory.parquet", trajectory)
measure_stage_maps(maps, features).round(3)

# %% [markdown]
# ## C11. Prototypes over training

# %%
figures.prototype_evolution.show(study, staged, trajectory, seed=seed)

# %% [markdown]
# ## Walk through the map
#
# In JupyterLab: move the slider, point at a pair to see its radiograph and why it was kept or dropped, click to hold
# it, double-click to let go, draw a lasso to see the radiographs inside. Report texts are shown only with
# `show_reports = True`. A picture of the map is saved with the notebook; without a front end this cell shows nothing,
# and the figure above stands for it.

# %%
from chexstudy.plots.explorer import explore_prototypes

reports = study.cohort.set_index("image_id").report if show_reports else None
explore_prototypes(study.run, staged, trajectory, study.read_image, reports)

# %% [markdown]
# ## Prototype cards
#
# What a prototype stands for is told by its pairs: the nearest, those at the median distance, and the farthest.

# %%
figures.prototype_cards.show(study, decisions, study.read_image, seed=seed)

# %% [markdown]
# ## C11. Usage, spread and churn
#
# How the kept pairs spread over the prototypes and how far prototypes lie apart; with several epochs of curation also
# the churn: which decisions differ from those of the epoch before.

# %%
figures.prototype_dynamics.show(study, study.run.read_table(f"{folder}/history.parquet"), ledger, seed=seed)

# %% [markdown]
# The churn in numbers (empty with one epoch of curation), and how far each prototype moved at each step:

# %%
from chexstudy.curation.records.ledger import measure_churn

measure_churn(ledger).round(3)

# %%
import pandas as pd

moved = np.linalg.norm(snapshots[1:] - snapshots[:-1], axis=2)
names = [f"prototype {k}" for k in range(snapshots.shape[1])]
pd.DataFrame(moved, columns=names, index=pd.Index(steps.step.iloc[1:], name="step")).round(3)

# %% [markdown]
# ## What must hold

# %%
assert not ledger.duplicated(["image_id", "epoch"]).any(), "a pair was considered twice in one epoch"
assert list(pairs.image_id) == list(decisions.image_id), "the map lacks a pair"
assert set(maps.image_id) == set(ledger.image_id), "the maps of stages lack a pair"
assert decisions.kept.mean() <= expected + 0.05, "more was selected than the constants allow"
assert np.allclose(np.linalg.norm(snapshots, axis=2), 1, atol=1e-4)
outliers = decisions[decisions.band == "outlier"]
print(
    f"The {study.config.curator.rule} rule selected {int(decisions.kept.sum()):,} of {len(decisions):,} pairs, "
    f"{expected:.1%} expected; of the {len(outliers):,} pairs farthest from their prototype it kept {outliers.kept.mean():.0%}."
)
print(
    f"At its largest step a prototype moved by {moved.max():.3f} on the unit sphere, at the last by {moved[-1].max():.3f}."
)
