# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 12. Sweep the budgets
#
# **What it shows.** Performance against compute and against data: the curated arm at several fractions selected, beside
# random pairs of the same number and random batches of the same operations, and what is saved at equal performance.
#
# **What it costs.** About ten minutes for the default study (9 more arms at 3 budgets, 3 seeds, 2 cores); at paper scale
# about 70 H100-hours an arm and seed at the published budget. All pairs are trained on once, in notebook 4.

# %% tags=["parameters"]
study = "demo"  # name of the study, the folder under runs/
change = False  # give the study other values than it has, and tell what is stale from then on
seed = 0  # first seed
seeds = 5  # number of seeds; comparisons are paired by seed
budgets: list[float] = [0.1, 0.227, 0.5]  # fractions selected, each above 0 and below 1
resamples = 1000  # bootstrap resamples of patients
device = "auto"  # auto, cpu or cuda
arms_at_once = 2  # arms trained side by side; 1 on a GPU

# %%
from chexstudy.plots import figures
from chexstudy.study import open_study

study = open_study("12_sweep_budgets", globals())

# %% [markdown]
# ## Train at every budget
#
# At each budget the curated arm keeps exactly so many pairs, by the budgeted rule; beside it are random pairs of the same
# number, and random batches of all pairs for the same operations. Both kinds of random training end in training on all
# pairs. Its epochs in between are no smaller budgets: their learning rate has not fallen yet.

# %%
from chexstudy.experiments.budget_sweep import compare_spending, train_at_budgets
from chexstudy.pretraining.arms.budgets import list_budget_arms
from chexstudy.pretraining.arms.definitions import read_costs

options = {"device": device, "workers": arms_at_once}
at_budgets = train_at_budgets(study.run, study.cohort, study.config, budgets, study.seeds, **options)
costs = read_costs(study.run, list_budget_arms(at_budgets), study.seeds)
spending = compare_spending(study.run, study.cohort, at_budgets, study.seeds)
spending.round(3)

# %% [markdown]
# ## C4. Performance against compute and data
#
# Zero-shot AUROC on the enriched test set where there is one; intervals draw patients and seeds.

# %%
from chexstudy.experiments.budget_sweep import measure_budgets, tabulate_budgets
from chexstudy.results import add_results

evaluation = study.evaluation(probe=False)
results = add_results(study.run, measure_budgets(evaluation, at_budgets, study.seeds, arms_at_once))
tabulate_budgets(results, costs)

# %%
figures.budgets.show(study, results, costs)

# %% [markdown]
# Curated minus each other at the same budget, and minus all pairs, paired by patient and seed. An interval that holds zero
# is no evidence of equality.

# %%
from chexstudy.experiments.budget_sweep import list_differences, list_savings, state_differences

list_differences(results).round(3)

# %% [markdown]
# What is saved at equal performance: how much less the curated arm costs than random training needs to be as good, and how
# much less curated training needs than all pairs do. Costs are read off performance against the logarithm of the cost, made
# to rise; beyond the budgets measured there are bounds only. Where the interval does not exclude zero, or is not bounded, it
# cannot be told whether anything is saved.

# %%
list_savings(results)

# %% [markdown]
# ## What must hold

# %%
assert (spending.kept == spending.asked).all(), "another number of pairs is kept than was asked for"
assert (spending.pairs_trained == spending.same_data_pairs).all(), "not the same amount of data"
assert spending.same_compute_operations.between(0.9, 1.1).all(), "not the same amount of compute"
print(f"{len(spending)} trainings kept to the pair, with the same data and the same operations beside them.")
for sentence in state_differences(results):
    print(sentence)
