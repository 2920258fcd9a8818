# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 2. Embed the pairs
#
# **What it shows.** Where each image-report pair lies in the joint space in which the curator works: with pretrained
# encoders as they are, or, for encoders that start from scratch, after a short warm-up on all pairs. Common pairs crowd
# together and rare ones lie apart, which is what a curator can use. This notebook trains first, so the constants of
# training are its parameters; the others read them from the study.
#
# **What it costs.** Under two minutes for the default study on 2 cores, warm-up included; at paper scale about 40
# GPU-minutes for every 100,000 pairs.

# %% tags=["parameters"]
study = "demo"  # name of the study, the folder under runs/
change = False  # give the study other values than it has, and tell what is stale from then on
seed = 0  # seed of the warm-up and of the map
image_encoder = "tiny-resnet"  # tiny-resnet, tiny-vit, a Hub id, or a folder
text_encoder = "tiny-bert"  # tiny-bert, a Hub id, or a folder
image_size = 96  # side in pixels at which the image encoder looks
warm_up_epochs = 4  # plain epochs over all pairs before curation; 0 for pretrained encoders
curation_epochs = 1  # epochs in which pairs are scored and selected anew
subset_epochs = 9  # epochs over the kept pairs after curation
batch_size = 128  # pairs a training step
micro_batch = 128  # pairs encoded at once; bounds memory, changes no result
super_batch = 480  # pairs scored together and selected from
rule = "published"  # published, or budgeted: exactly the constant budget (0.227) is kept
prototypes = 6  # number of prototypes, K
central_cap = 10  # central members kept a prototype and super-batch
outlier_policy = "drop"  # drop outliers as published, keep them, or put them on a review list
learning_rate = 1e-3  # peak learning rate of AdamW
precision = "auto"  # auto, fp32 or bf16
constants: list[str] = []  # further constants of PretrainingConfig: texts of name, equals sign and value
device = "auto"  # auto, cpu or cuda
neighbours = 10  # neighbours of the density estimate

# %%
import numpy as np
import pandas as pd
import torch

from chexstudy.cohort.prevalence import measure_prevalence, prevalence_tiers, tiers_of_pairs
from chexstudy.cohort.pixels.store import open_pixel_store
from chexstudy.cohort.table import finding_columns, read_cohort
from chexstudy.curation.online.prototypes import join_features
from chexstudy.encoders.embeddings import embed_cohort
from chexstudy.vectors.neighbours import density
from chexstudy.vectors.umap import read_or_fit_map
from chexstudy.workflow.notebook import start_notebook
from chexstudy.plots.embedding import describe_embedding, plot_embedding
from chexstudy.plots.style import save_figure
from chexstudy.pretraining.arms.definitions import arm_folder, train_arms
from chexstudy.pretraining.arms.study_config import read_config
from chexstudy.devices import choose_device
from chexstudy.pretraining.models.dual_encoder import build_model, load_model

run = start_notebook("02_embed_pairs", globals())
config = read_config(run)
cohort = read_cohort(run.require("cohort.parquet"))
store = open_pixel_store(run)
train = cohort[cohort.split == "train"].reset_index(drop=True)

# %% [markdown]
# ## The scoring model
#
# An encoder from scratch knows nothing, and distances in its space mean nothing. So it is warmed up on all pairs first;
# every arm that starts from this model is charged for it.

# %%
if warm_up_epochs:
    train_arms(run, ["warm_up"], [seed], config, device)
    model = load_model(run.path(f"{arm_folder('warm_up', seed)}/model"))
    towers = (model.image_tower, model.text_tower)
else:
    model = build_model(config, train, seed)
    towers = (model.image_tower.encoder, model.text_tower.encoder)
pd.Series(towers[0].describe() | {"text encoder": towers[1].describe()["name"]}, name="scoring model")

# %% [markdown]
# ## Embeddings of all training pairs
#
# Cached under `embeddings/scoring/`, keyed by weights, preprocessing and cohort: a second run reads them.

# %%
embeddings = embed_cohort(run, train, store, *towers, "scoring", device=choose_device(device))
sides = [torch.from_numpy(np.array(side, dtype=np.float32)) for side in (embeddings.image, embeddings.text)]
joint = join_features(*[torch.nn.functional.normalize(side, dim=1) for side in sides]).numpy()
print(f"{len(joint):,} pairs in {joint.shape[1]} dimensions")

# %% [markdown]
# ## Dense and thin regions
#
# Density is one over the mean distance to the nearest pairs. If rare findings lie in thinner regions than pairs without
# any finding, a curator that thins dense regions keeps more of them. A pair belongs to the rarest tier among its
# findings; without labels there are no tiers.

# %%
local_density = density(joint, min(neighbours, len(joint) - 1))
finite = np.where(np.isfinite(local_density), local_density, np.nanmax(local_density[np.isfinite(local_density)]))
pairs = pd.DataFrame({"image_id": train.image_id, "density": finite})
if finding_columns(train):
    tiers = prevalence_tiers(measure_prevalence(train)).to_dict()
    pairs = pairs.assign(tier=tiers_of_pairs(train, tiers))
percentile = pairs.density.rank(pct=True)
groups = pairs.tier if "tier" in pairs else pd.Series("all", index=pairs.index)
percentile.groupby(groups).agg(pairs="size", median_density_percentile="median").round(2)

# %% [markdown]
# ## The map
#
# UMAP of the joint features, fitted once with a seed; the coordinates are kept, because UMAP is repeatable on one
# machine but not across machines, and so that a second run draws in seconds.

# %%
inputs = tuple(f"embeddings/scoring/{name}" for name in ("image.npy", "text.npy", "ids.parquet"))
coordinates = read_or_fit_map(run, "embeddings/scoring/map.parquet", train.image_id, joint, seed, inputs)
pairs = coordinates.merge(pairs, on="image_id")
figure = plot_embedding(pairs)
save_figure(run, figure, "embedding", describe_embedding(pairs, seed), pairs.drop(columns="image_id"))
figure

# %% [markdown]
# ## What must hold

# %%
assert np.isfinite(joint).all()
assert list(embeddings.image_ids) == list(pairs.image_id) == list(train.image_id)
assert np.allclose(np.linalg.norm(joint, axis=1), 1, atol=1e-3)
print("every training pair is embedded, in the cohort's order, with unit norm")
