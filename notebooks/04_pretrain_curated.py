# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 4. Pretrain on what curation kept
#
# **What it shows.** The arms of the study, trained by one engine from the same start: curated by prototypes, as
# published; filtered, as many pairs by the same prototypes after mismatched ones were set aside; random with as much
# data; random with as much compute; all data; and, where labels are known, a subset balanced by an oracle, as a positive
# control and ceiling. What each costs is counted, warm-up and scoring included.
#
# **What it costs.** About eight minutes for the default study (6 arms, 5 seeds, 2 cores); at paper scale about 70
# H100-hours for an arm that curates and 260 for all data.

# %% tags=["parameters"]
study = "demo"  # name of the study, the folder under runs/
change = False  # give the study other values than it has, and tell what is stale from then on
seed = 0  # first seed
seeds = 5  # number of seeds; comparisons are paired by seed
arms: list[str] = []  # arms to train; empty for all
device = "auto"  # auto, cpu or cuda
arms_at_once = 2  # arms trained side by side; 1 on a GPU

# %%
from chexstudy.plots import figures
from chexstudy.study import open_study

study = open_study("04_pretrain_curated", globals())

# %% [markdown]
# ## The arms

# %%
import pandas as pd

from chexstudy.pretraining.arms.definitions import ARMS

pd.Series({name: ARMS[name].explanation for name in study.arms}, name="what it is trained on").to_frame()

# %% [markdown]
# ## Train
#
# Each arm runs in a process of its own and writes a checkpoint after every epoch; a study that was killed goes on from
# there, and finished arms are not trained again. So the curated arm of the first seed, which notebook 3 trained to watch
# its prototypes, is taken as it is.

# %%
from chexstudy.pretraining.arms.definitions import read_costs, tabulate_costs
from chexstudy.pretraining.arms.worker_pool import train_arms

train_arms(study.run, study.arms, study.seeds, study.config, device, arms_at_once)
costs = read_costs(study.run, study.arms, study.seeds)
tabulate_costs(costs)

# %% [markdown]
# ## What was spent, relative to all data
#
# Operations are counted by torch on the real modules. The published figure is under 27.3 % of the compute for 22.7 % of
# the data; there the first epoch trains on all pairs, here it only scores them, but the warm-up is charged.

# %%
from chexstudy.pretraining.arms.definitions import compare_costs, state_costs

compare_costs(costs).round(3)

# %% [markdown]
# ## C11. Training dynamics
#
# What the published code logs: fraction selected, usage and spread of the prototypes, loss, similarity of matched and
# unmatched pairs, temperature and learning rate.

# %%
from chexstudy.pretraining.arms.definitions import arm_folder

histories = {name: study.run.read_table(f"{arm_folder(name, seed)}/history.parquet") for name in study.arms}
figures.training_dynamics.show(study, histories.pop("curated", None), histories, seed=seed)

# %% [markdown]
# ## What must hold
#
# The curated arm, the filtered one and random pairs are compared at the same data, and the curated arm and random
# batches at the same operations. The filter ranks by the model in training, or, where the study starts from the upstream
# encoders, by the aligned pair that comes with them: that look is charged on top, the pair's training is not.

# %%
pairs, operations = (costs.pivot(index="seed", columns="arm", values=name) for name in ("pairs_trained", "flops"))
same_data = pairs.reindex(columns=["curated", "filtered", "random_same_data"])
same_compute = operations.reindex(columns=["curated", "random_same_compute"])
assert not (same_data.max(axis=1) > 1.01 * same_data.min(axis=1)).any(), "not the same amount of data"
assert not (same_compute.max(axis=1) > 1.1 * same_compute.min(axis=1)).any(), "not the same amount of compute"
for sentence in state_costs(costs):
    print(sentence)
