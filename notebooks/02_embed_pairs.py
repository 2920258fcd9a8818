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
image_encoder = "upstream-image"  # upstream-image, tiny-resnet, tiny-vit, a Hub id, or a folder
text_encoder = "upstream-text"  # upstream-text, tiny-bert, a Hub id, or a folder
image_size = 96  # side in pixels at which the image encoder looks
warm_up_epochs = 0  # plain epochs over all pairs before curation, for encoders that start from scratch
curation_epochs = 1  # epochs in which pairs are scored and selected anew
subset_epochs = 9  # epochs over the kept pairs after curation
batch_size = 128  # pairs a training step
micro_batch = 128  # pairs encoded at once; bounds memory, changes no result
super_batch = 480  # pairs scored together and selected from
rule = "published"  # published, or budgeted: exactly the constant budget (0.227) is kept
prototypes = 6  # number of prototypes, K
central_cap = 10  # central members kept a prototype and super-batch
outlier_policy = "drop"  # drop outliers as published, keep them, or put them on a review list
learning_rate = 3e-4  # peak learning rate of AdamW
precision = "auto"  # auto, fp32 or bf16
constants: list[str] = []  # further constants of PretrainingConfig: texts of name, equals sign and value
device = "auto"  # auto, cpu or cuda
neighbours = 10  # neighbours of the density estimate

# %%
from chexstudy.plots import figures
from chexstudy.study import open_study

study = open_study("02_embed_pairs", globals())

# %% [markdown]
# ## The scoring model
#
# An encoder from scratch knows nothing, and distances in its space mean nothing. So it is warmed up on all pairs first;
# every arm that starts from this model is charged for it.

# %%
import pandas as pd

from chexstudy.pretraining.training.scoring import joint_features, read_scoring_towers

towers = read_scoring_towers(study.run, study.cohort, seed, study.config, device)
pd.Series(towers[0].describe() | {"text encoder": towers[1].describe()["name"]}, name="scoring model")

# %% [markdown]
# ## Embeddings of all training pairs
#
# Cached under `embeddings/scoring/`, keyed by weights, preprocessing and cohort: a second run reads them.

# %%
from chexstudy.encoders.embeddings import embed_cohort

embeddings = embed_cohort(study.run, study.train, study.pixels, *towers, "scoring", device=study.device)
joint = joint_features(embeddings.image, embeddings.text)
print(f"{len(joint):,} pairs in {joint.shape[1]} dimensions")

# %% [markdown]
# ## Dense and thin regions
#
# Density is one over the mean distance to the nearest pairs. If rare findings lie in thinner regions than pairs without
# any finding, a curator that thins dense regions keeps more of them. A pair belongs to the rarest tier among its
# findings; without labels there are no tiers.

# %%
from chexstudy.curation.quality.local_density import list_densities, summarise_densities

pairs = list_densities(study.train, joint, neighbours)
summarise_densities(pairs).round(2)

# %% [markdown]
# ## The map
#
# UMAP of the joint features, fitted once with a seed; the coordinates are kept, because UMAP is repeatable on one
# machine but not across machines, and so that a second run draws in seconds.

# %%
from chexstudy.vectors.umap import read_or_fit_map

inputs = tuple(f"embeddings/scoring/{name}" for name in ("image.npy", "text.npy", "ids.parquet"))
coordinates = read_or_fit_map(study.run, "embeddings/scoring/map.parquet", study.train.image_id, joint, seed, inputs)
pairs = coordinates.merge(pairs, on="image_id")
figures.embedding.show(study, pairs, seed=seed)

# %% [markdown]
# ## What must hold

# %%
import numpy as np

assert np.isfinite(joint).all()
assert list(embeddings.image_ids) == list(pairs.image_id) == list(study.train.image_id)
assert np.allclose(np.linalg.norm(joint, axis=1), 1, atol=1e-3)
print(f"All {len(joint):,} training pairs are embedded, in the cohort's order, with unit norm.")
