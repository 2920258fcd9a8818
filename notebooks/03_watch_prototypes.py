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
import numpy as np
import pandas as pd

from chexstudy.cohort.pixels.store import open_pixel_store
from chexstudy.cohort.table import read_cohort
from chexstudy.curation.choice import count_budget
from chexstudy.curation.online.decisions import BATCH_EMPTY, REASONS
from chexstudy.curation.online.configuration import expected_fraction
from chexstudy.curation.records.ledger import summarise_bands
from chexstudy.curation.records.scored_pairs import read_scored_pairs
from chexstudy.plots.explorer import explore_prototypes
from chexstudy.vectors.umap import read_or_fit_map, trace_prototypes
from chexstudy.workflow.notebook import start_notebook
from chexstudy.plots.cards import describe_prototype_cards, list_prototype_cards, plot_prototype_cards
from chexstudy.plots.dynamics import describe_prototype_dynamics, measure_churn, plot_prototype_dynamics
from chexstudy.plots.evolution import describe_prototype_evolution, plot_prototype_evolution
from chexstudy.plots.framework import describe_framework, plot_framework, select_bands
from chexstudy.plots.style import save_figure
from chexstudy.pretraining.arms.definitions import arm_folder, train_arms
from chexstudy.pretraining.arms.study_config import read_config
from chexstudy.curation.records.stage_maps import (
    join_stage_maps,
    measure_stage_maps,
    plan_stages,
    read_or_fit_stage_maps,
    trace_over_stages,
)

run = start_notebook("03_watch_prototypes", globals())
config = read_config(run)
folder = arm_folder("curated", seed)

# %% [markdown]
# ## Train the curated arm
#
# Each super-batch is scored without gradient, the curator chooses, and the model is trained on the chosen pairs alone.
# Every decision goes into the ledger with its grounds. `chexstudy why IMAGE_ID` tells the story of one pair in words.

# %%
train_arms(run, ["curated"], [seed], config, device)
scored = read_scored_pairs(run, "curated", seed)
ledger, last = scored.ledger, scored.in_last_epoch()
decisions = last.ledger
decisions.drop(columns="image_id").head()

# %% [markdown]
# ## What each band kept
#
# The fraction selected by the published rule is a property of the design, not of the data: about 0.10 + cap x K / B,
# where B is the super-batch (and 0.05 more where outliers are kept). The budgeted rule selects what was asked for.

# %%
sizes = decisions.groupby("step").size()
expected = np.average(expected_fraction(config.curator, sizes), weights=sizes)
print(
    f"{decisions.kept.mean():.1%} of {len(decisions):,} pairs selected; "
    f"by the {config.curator.rule} rule {expected:.1%} are expected"
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
features = scored.features.astype(np.float32)
snapshots = run.read_array(f"{folder}/prototypes.npy")
steps = run.read_table(f"{folder}/snapshots.parquet")
inputs = (f"{folder}/features.npy", f"{folder}/ledger.parquet")
coordinates = read_or_fit_map(run, f"{folder}/map.parquet", decisions.image_id, last.features, seed, inputs)
pairs = decisions.merge(coordinates, on="image_id")
final = trace_prototypes(snapshots, steps, last.features, coordinates[["x", "y"]].to_numpy())

# %% [markdown]
# ## C1. Framework and prototype regions
#
# CheXficient, Figure 1a and b, with this study's own pairs. In the published sketch the farthest samples are the ones
# that are prioritised; in the published code, and so here, the farthest 5 % of each prototype are dropped.

# %%
store = open_pixel_store(run)
framework = plot_framework(pairs, final, lambda image_id: store.read([image_id])[0])
save_figure(run, framework, "framework", describe_framework(pairs, final, seed), select_bands(pairs))
framework

# %% [markdown]
# ## Maps of the stages, each started from the one before
#
# What one map cannot show is the drift itself. So every stretch of super-batches (or, where there are several, every
# epoch of curation) has a map of its own. Fitted apart, maps of nearly the same pairs can differ by any turn and any
# arrangement; here each starts from the one before, and a stretch is mapped together with the stretch before it, so
# that pairs which are on both stay near their places. `trustworthiness` says how far neighbours on a map are
# neighbours in feature space (1 is best), `moved` how far shared pairs moved, as a share of the map's radius.

# %%
stages = plan_stages(ledger)
first = coordinates.set_index("image_id").loc[ledger.image_id.iloc[stages[0].rows], ["x", "y"]].to_numpy()
maps = read_or_fit_stage_maps(
    run, f"{folder}/stage_maps.parquet", ledger, features, stages, seed, (*inputs, f"{folder}/map.parquet"), first
)
staged = join_stage_maps(ledger, maps)
trajectory = trace_over_stages(snapshots, steps, stages, features, maps)
run.write_table(f"{folder}/trajectory.parquet", trajectory)
quality = measure_stage_maps(maps, features)
quality.round(3)

# %% [markdown]
# ## C11. Prototypes over training

# %%
evolution = plot_prototype_evolution(staged, trajectory)
caption = describe_prototype_evolution(staged, trajectory, seed)
save_figure(run, evolution, "prototype_evolution", caption, trajectory)
evolution

# %% [markdown]
# ## Walk through the map
#
# In JupyterLab: move the slider, point at a pair to see its radiograph and why it was kept or dropped, click to hold
# it, double-click to let go, draw a lasso to see the radiographs inside. Report texts are shown only with
# `show_reports = True`. A picture of the map is saved with the notebook; without a front end this cell shows nothing,
# and the figure above stands for it.

# %%
reports = read_cohort(run.path("cohort.parquet")).set_index("image_id").report if show_reports else None
explorer = explore_prototypes(run, staged, trajectory, lambda image_id: store.read([image_id])[0], reports)
explorer

# %% [markdown]
# ## Prototype cards
#
# What a prototype stands for is told by its pairs: the nearest, those at the median distance, and the farthest.

# %%
cards = plot_prototype_cards(decisions, lambda image_id: store.read([image_id])[0])
save_figure(run, cards, "prototype_cards", describe_prototype_cards(decisions, seed), list_prototype_cards(decisions))
cards

# %% [markdown]
# ## C11. Usage, spread and churn
#
# How the kept pairs spread over the prototypes and how far prototypes lie apart; with several epochs of curation also
# the churn: which decisions differ from those of the epoch before.

# %%
history = run.read_table(f"{folder}/history.parquet")
dynamics = plot_prototype_dynamics(history, ledger)
caption = describe_prototype_dynamics(history, ledger, seed)
used = history.loc[history.phase == "curate", ["step", "usage", "prototype_spread"]]
save_figure(run, dynamics, "prototype_dynamics", caption, used)
dynamics

# %% [markdown]
# The churn in numbers (empty with one epoch of curation), and how far each prototype moved at each step:

# %%
measure_churn(ledger).round(3)

# %%
moved = np.linalg.norm(snapshots[1:] - snapshots[:-1], axis=2)
movement = pd.DataFrame(moved, columns=[f"prototype {k}" for k in range(snapshots.shape[1])])
movement.index = pd.Index(steps.step.iloc[1:], name="step")
movement.round(3)

# %% [markdown]
# ## What must hold

# %%
by_rule = decisions[decisions.reason != REASONS[BATCH_EMPTY]]
assert not ledger.duplicated(["image_id", "epoch"]).any(), "a pair was considered twice in one epoch"
assert list(pairs.image_id) == list(decisions.image_id), "the map lacks a pair"
assert set(maps.image_id) == set(ledger.image_id), "the maps of stages lack a pair"
if config.curator.rule == "published":
    kept_outliers = by_rule[by_rule.band == "outlier"].kept.to_numpy()
    assert (kept_outliers == (config.curator.outlier_policy == "keep")).all(), "the outlier policy was not followed"
    assert by_rule[by_rule.band == "support"].kept.all(), "the published rule keeps the support band"
else:
    assert decisions.kept.sum() == count_budget(config.curator.budget, len(decisions)), "the budget was not met"
assert np.allclose(np.linalg.norm(snapshots, axis=2), 1, atol=1e-4)
print(f"one decision a pair and epoch; kept by the {config.curator.rule} rule; prototypes on the unit sphere")
