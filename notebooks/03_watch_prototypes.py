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
# **What it shows.** The published curator at work: prototypes start at k-means centres, move with every super-batch, and
# divide the pairs around them into three bands. The central band is thinned by farthest-point selection, the support
# band is kept, and the outlier band is dropped, although it is the farthest.
#
# **What it costs.** Under two minutes for the default study on 2 cores (one curated arm and one map); at paper scale the
# curated arm of notebook 4, about 70 H100-hours, and ten minutes of mapping for 100,000 pairs.

# %% tags=["parameters"]
study = "demo"  # name of the study, the folder under runs/
seed = 0  # seed of the curated arm and of the map
image_encoder = "tiny-resnet"  # tiny-resnet, tiny-vit, a Hub id, or a folder
text_encoder = "tiny-bert"  # tiny-bert, a Hub id, or a folder
image_size = 96  # side in pixels at which the image encoder looks
warm_up_epochs = 4  # plain epochs over all pairs before curation; 0 for pretrained encoders
subset_epochs = 9  # epochs over the kept pairs after curation
batch_size = 128  # pairs a training step
micro_batch = 128  # pairs encoded at once; bounds memory, changes no result
super_batch = 480  # pairs scored together and selected from
prototypes = 6  # number of prototypes, K
central_cap = 10  # central members kept a prototype and super-batch
learning_rate = 1e-3  # peak learning rate of AdamW
precision = "auto"  # auto, fp32 or bf16
constants: list[str] = []  # further constants of PretrainingConfig, as name=value
device = "auto"  # auto, cpu or cuda

# %%
import numpy as np
import pandas as pd

from chexstudy.cohort.pixels import open_pixel_store
from chexstudy.curation.ledger import summarise_bands
from chexstudy.mapping import read_or_fit_map, trace_prototypes
from chexstudy.notebook import start_notebook
from chexstudy.plots.evolution import describe_prototype_evolution, plot_prototype_evolution
from chexstudy.plots.framework import describe_framework, plot_framework, select_bands
from chexstudy.plots.style import save_figure
from chexstudy.pretraining.arms import arm_folder, train_arms
from chexstudy.pretraining.configuration import read_constants

run = start_notebook("03_watch_prototypes", globals())
config = read_constants(globals())
folder = arm_folder("curated", seed)

# %% [markdown]
# ## Train the curated arm
#
# Each super-batch is scored without gradient, the curator chooses, and the model is trained on the chosen pairs alone.
# Every decision goes into the ledger with its grounds.

# %%
train_arms(run, ["curated"], [seed], config, device)
ledger = run.read_table(f"{folder}/ledger.parquet", "03_watch_prototypes")
ledger.drop(columns="image_id").head()

# %% [markdown]
# ## What each band kept
#
# The published share kept is a property of the design, not of the data: about 0.10 + cap x K / B, where B is the
# super-batch.

# %%
bands = summarise_bands(ledger)
kept_share = ledger.kept.mean()
sizes = ledger.groupby("step").size()
expected = float((0.10 * sizes + np.minimum(central_cap * prototypes, 0.85 * sizes)).sum() / sizes.sum())
print(f"kept {kept_share:.1%} of {len(ledger):,} pairs; the ratio law says {expected:.1%}")
bands

# %% [markdown]
# ## The map
#
# UMAP is fitted once on the features at which the pairs were scored; prototypes are placed between their nearest pairs,
# so the same map serves all snapshots. A pair lies where it was when it was scored. The model goes on learning while it
# curates, so the space drifts under the map, and prototypes, which keep nine tenths of themselves at every step, lag
# behind: pairs of late super-batches can lie away from all of them. That is the published rule seen from above, not an
# error of the map.

# %%
features = run.read_array(f"{folder}/features.npy", "03_watch_prototypes").astype(np.float32)
snapshots = run.read_array(f"{folder}/prototypes.npy", "03_watch_prototypes")
steps = run.read_table(f"{folder}/snapshots.parquet", "03_watch_prototypes")
inputs = (f"{folder}/features.npy", f"{folder}/ledger.parquet")
coordinates = read_or_fit_map(run, f"{folder}/map.parquet", ledger.image_id, features, seed, inputs)
pairs = ledger.merge(coordinates, on="image_id")
trajectory = trace_prototypes(snapshots, steps, features, coordinates[["x", "y"]].to_numpy())
run.write_table(f"{folder}/trajectory.parquet", trajectory)

# %% [markdown]
# ## C1. Framework and prototype regions
#
# CheXficient, Figure 1a and b, with this study's own pairs. In the published sketch the farthest samples are the ones
# that are prioritised; in the published code, and so here, the farthest 5 % of each prototype are dropped.

# %%
store = open_pixel_store(run)
framework = plot_framework(pairs, trajectory, lambda image_id: store.read([image_id])[0])
save_figure(run, framework, "framework", describe_framework(pairs, trajectory, seed), select_bands(pairs))
framework

# %% [markdown]
# ## C11. Prototypes over training

# %%
evolution = plot_prototype_evolution(pairs, trajectory)
caption = describe_prototype_evolution(pairs, trajectory, seed)
save_figure(run, evolution, "prototype_evolution", caption, trajectory)
evolution

# %% [markdown]
# ## How far the prototypes moved

# %%
moved = np.linalg.norm(snapshots[1:] - snapshots[:-1], axis=2)
movement = pd.DataFrame(moved, columns=[f"prototype {k}" for k in range(snapshots.shape[1])])
movement.index = pd.Index(steps.step.iloc[1:], name="step")
movement.round(3)

# %% [markdown]
# ## What must hold

# %%
assert ledger.image_id.is_unique, "a pair was considered twice in one epoch"
assert list(pairs.image_id) == list(ledger.image_id), "the map lacks a pair"
assert not ledger[ledger.band == "outlier"].kept.any(), "the published rule drops the outlier band"
assert ledger[ledger.band == "support"].kept.all(), "the published rule keeps the support band"
assert np.allclose(np.linalg.norm(snapshots, axis=2), 1, atol=1e-4)
print("one decision a pair; bands as published; prototypes on the unit sphere")
