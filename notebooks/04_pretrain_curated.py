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
# **What it shows.** The arms of the study, trained by one engine from the same start: curated by prototypes; random with
# as much data; random with as much compute; all data; and, where labels are known, a subset balanced by an oracle, as a
# positive control and ceiling. What each costs is counted, warm-up and scoring included. With `budgets`, the same at
# several shares kept: performance against compute and data, and what is saved at equal performance.
#
# **What it costs.** About seven minutes for the default study (5 arms, 3 seeds, 2 cores); at paper scale about 70
# H100-hours for the curated arm and 260 for all data. Each budget trains three more arms a seed.

# %% tags=["parameters"]
study = "demo"  # name of the study, the folder under runs/
change = False  # give the study other values than it has, and tell what is stale from then on
seed = 0  # first seed
seeds = 3  # number of seeds; comparisons are paired by seed
arms: list[str] = []  # arms to train; empty for all
budgets: list[float] = []  # shares kept, for example 0.1, 0.227, 0.5; empty for the curator's own
resamples = 1000  # bootstrap resamples of patients, for the budgets
device = "auto"  # auto, cpu or cuda
arms_at_once = 2  # arms trained side by side; 1 on a GPU

# %%
import pandas as pd
from IPython.display import display

from chexstudy.cohort.table import finding_columns, read_cohort
from chexstudy.curation.choice import count_budget
from chexstudy.workflow.notebook import start_notebook
from chexstudy.plots.dynamics import describe_training_dynamics, plot_training_dynamics
from chexstudy.plots.style import save_figure
from chexstudy.pretraining.arms.definitions import (
    ARMS,
    arm_folder,
    choose_arms,
    choose_seeds,
    read_costs,
    tabulate_costs,
    train_arms,
)
from chexstudy.pretraining.arms.budgets import list_budget_arms, plan_budgets
from chexstudy.pretraining.arms.study_config import read_config

run = start_notebook("04_pretrain_curated", globals())
config = read_config(run)
cohort = read_cohort(run.require("cohort.parquet"))
labelled = bool(finding_columns(cohort))
arm_names = choose_arms(arms, labelled)
arm_seeds = choose_seeds(seed, seeds)
pairs = int((cohort.split == "train").sum())
at_budgets = plan_budgets(config, budgets, pairs) if labelled else {}
budget_arms = list_budget_arms(at_budgets)
if budgets and not labelled:
    print("the cohort has no labels to judge a model by: no budgets are compared")

# %% [markdown]
# ## The arms

# %%
pd.Series({name: ARMS[name].explanation for name in arm_names}, name="what it is trained on").to_frame()

# %% [markdown]
# ## Train
#
# Each arm runs in a process of its own and writes a checkpoint after every epoch; a study that was killed goes on from
# there, and finished arms are not trained again.

# %%
train_arms(run, [*arm_names, *budget_arms], arm_seeds, config, device, arms_at_once, at_budgets)
costs = read_costs(run, arm_names, arm_seeds)
tabulate_costs(costs)

# %% [markdown]
# ## What was spent, relative to all data
#
# Operations are counted by torch on the real modules. The published figure is under 27.3 % of the compute for 22.7 % of
# the data; there the first epoch trains on all pairs, here it only scores them, but the warm-up is charged.

# %%
mean = costs.groupby("arm", sort=False)[["flops", "seconds", "pairs_trained"]].mean()
if "full" in mean.index:
    display((mean / mean.loc["full"]).round(3))

# %% [markdown]
# ## C11. Training dynamics
#
# What the published code logs: share kept, usage and spread of the prototypes, loss, similarity of matched and unmatched
# pairs, temperature and learning rate.

# %%
histories = {name: run.read_table(f"{arm_folder(name, seed)}/history.parquet") for name in arm_names}
if "curated" in histories:
    curated = histories.pop("curated")
    dynamics = plot_training_dynamics(curated, histories)
    caption = describe_training_dynamics(curated, histories, seed)
    save_figure(run, dynamics, "training_dynamics", caption, curated.drop(columns="usage"))
    display(dynamics)

# %% [markdown]
# ## C4. Performance against compute and data
#
# Only with `budgets`. At each share the curated arm keeps exactly so many pairs, by the budgeted rule; beside it are random
# pairs of the same number, and random batches of all pairs for the same operations. Both kinds of random training end in
# training on all pairs. Its epochs in between are no smaller budgets: their learning rate has not fallen yet. Zero-shot
# AUROC on the enriched test set where there is one; intervals draw patients and seeds.

# %%
if at_budgets:
    # Here and not above: evaluation brings torch, whose import takes longer than all else where no budget is given.
    from chexstudy.cohort.pixels.store import open_pixel_store
    from chexstudy.evaluation.context import Evaluation
    from chexstudy.experiments.budget_sweep import list_differences, list_savings, measure_budgets, tabulate_budgets
    from chexstudy.results import add_results
    from chexstudy.plots.budgets import describe_budgets, plot_budgets, select_budgets
    from chexstudy.devices import choose_device

    evaluation = Evaluation(run, cohort, open_pixel_store(run), resamples, seed, False, str(choose_device(device)))
    results = add_results(run, measure_budgets(evaluation, at_budgets, arm_seeds, arms_at_once))
    budget_costs = read_costs(run, budget_arms, arm_seeds)
    display(tabulate_budgets(results, budget_costs))
else:
    print("no budgets to compare: set budgets, for example to 0.1, 0.227 and 0.5")

# %%
if at_budgets:
    performance = plot_budgets(results, budget_costs)
    caption = describe_budgets(results, budget_costs)
    save_figure(run, performance, "budgets", caption, select_budgets(results, budget_costs))
    display(performance)

# %% [markdown]
# Curated minus each other at the same budget, and minus all pairs, paired by patient and seed. An interval that holds zero
# is no evidence of equality.

# %%
if at_budgets:
    display(list_differences(results).round(3))

# %% [markdown]
# What is saved at equal performance: how much less the curated arm costs than random training needs to be as good, and how
# much less curated training needs than all pairs do. Costs are read off performance against the logarithm of the cost, made
# to rise; beyond the budgets measured there are bounds only. Where the interval does not exclude zero, or is not bounded, it
# cannot be told whether anything is saved.

# %%
if at_budgets:
    display(list_savings(results))

# %% [markdown]
# ## What must hold

# %%
trained = costs.pivot(index="seed", columns="arm", values="pairs_trained")
flops = costs.pivot(index="seed", columns="arm", values="flops")
if {"curated", "random_same_data"} <= set(arm_names):
    assert (trained.curated == trained.random_same_data).all(), "not the same amount of data"
    print("curated and random_same_data were trained on equally many pairs")
if {"curated", "random_same_compute"} <= set(arm_names):
    assert ((flops.random_same_compute / flops.curated - 1).abs() < 0.1).all(), "not the same amount of compute"
    print("curated and random_same_compute spent the same operations within 10 %")
assert len(costs) == len(arm_names) * len(arm_seeds)
if at_budgets:
    measured = results[results.task == "budget_zero_shot"]
    assert measured.value.between(0, 1).all()
    assert (measured.ci_low <= measured.ci_high)[measured.ci_low.notna()].all()
    spent = budget_costs.set_index(["arm", "seed"])
    for variant, constants_there in at_budgets.items():
        for one in arm_seeds:
            kept = run.read_table(f"{arm_folder(f'curated.{variant}', one)}/subset.parquet")
            assert len(kept) == count_budget(constants_there.curator.budget, pairs), (
                f"{variant}: another number is kept"
            )
        curated, same_data, same_compute = (
            spent.loc[f"{arm}.{variant}"] for arm in ("curated", "random_same_data", "random_same_compute")
        )
        assert (curated.pairs_trained == same_data.pairs_trained).all(), f"{variant}: not the same amount of data"
        assert ((same_compute.flops / curated.flops - 1).abs() < 0.1).all(), f"{variant}: not the same compute"
    print(f"{', '.join(at_budgets)}: kept to the pair, with the same data and the same operations beside them")
