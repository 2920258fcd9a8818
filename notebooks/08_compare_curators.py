# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 8. Compare the curators
#
# **What it shows.** Every known method of choosing a subset, at one budget and from one model: what each keeps of the
# rare, the redundant and the wrong; how stable its choice is; and how well a model trained on it classifies, at the same
# data and at the same compute. Each is held against a random subset. At the end stands which method to take when.
#
# **What it costs.** About ten minutes for the default study on 2 cores (16 methods, 3 seeds, some 54 short trainings);
# on real cohorts one training on the subset, at paper scale about 70 H100-hours, for each method and seed.

# %% tags=["parameters"]
study = "demo"  # name of the study, the folder under runs/
change = False  # give the study other values than it has, and tell what is stale from then on
seed = 0  # first seed of the arms, and seed of the resampling
seeds = 3  # number of seeds; comparisons are paired by seed
methods: list[str] = []  # methods to compare; empty for all, and random is always among them
keep = 0.227  # share of the training pairs that every method keeps, or above 1 their number
device = "auto"  # auto, cpu or cuda
arms_at_once = 2  # arms trained and evaluated side by side; 1 on a GPU
resamples = 1000  # bootstrap resamples of patients

# %%
import pandas as pd
from IPython.display import display

from chexstudy.cohort.pixels.store import open_pixel_store
from chexstudy.cohort.table import finding_columns, read_cohort
from chexstudy.curation.choice import count_budget
from chexstudy.curation.methods import METHODS
from chexstudy.experiments.curator_recommendations import (
    advise_methods,
    state_comparison,
    summarise_kept,
    summarise_trained,
)
from chexstudy.evaluation.context import Evaluation
from chexstudy.experiments.curator_comparison import (
    compare_methods,
    list_stability,
    measure_methods_kept,
    measure_methods_zero_shot,
    measure_stability,
    plan_same_compute,
    tabulate_comparison,
)
from chexstudy.results import OVER_SEEDS, add_results
from chexstudy.workflow.notebook import start_notebook
from chexstudy.plots.comparison import describe_method_comparison, list_comparison, plot_method_comparison
from chexstudy.plots.style import save_figure
from chexstudy.pretraining.arms.definitions import choose_seeds, name_method_arm, read_costs, tabulate_costs, train_arms
from chexstudy.pretraining.arms.study_config import read_config
from chexstudy.devices import choose_device
from chexstudy.pretraining.training.subsets import choose_methods, choose_training_subsets, train_scoring_arms

run = start_notebook("08_compare_curators", globals())
config = read_config(run)
cohort = read_cohort(run.require("cohort.parquet"))
train = cohort[cohort.split == "train"]
labelled = bool(finding_columns(cohort))
method_names = choose_methods(methods)
arm_seeds = choose_seeds(seed, seeds)

# %% [markdown]
# ## The methods
#
# All take the embeddings of the pairs; what some need beside them is in the last column.

# %%
described = {
    name: (METHODS[name].summary, METHODS[name].paper, ", ".join(METHODS[name].needs)) for name in method_names
}
pd.set_option("display.max_colwidth", None)
pd.DataFrame.from_dict(described, orient="index", columns=["keeps", "source", "needs beside features"])

# %% [markdown]
# ## Choose
#
# The curated arm curates while it trains. Here every method looks once, at the model of the end of the warm-up: it is
# given the same embeddings and the same losses, and chooses as many pairs. Learnability also needs a model that has seen
# all pairs, the arm trained on all data; a study that has none would have to train it first.

# %%
train_scoring_arms(run, method_names, arm_seeds, config, device, arms_at_once)
subsets = choose_training_subsets(run, method_names, arm_seeds, config, keep, device)
print(f"each method keeps {len(subsets[method_names[0], seed]):,} of {len(train):,} pairs")

# %% [markdown]
# ## What each kept
#
# Measured before anything is trained. Enrichment is the share kept of a tier's pairs over the share kept of all: 1 is
# chance. Redundancy is the cosine of a kept pair to the nearest other kept one. Coverage asks how far the dropped are
# from the kept: the radius, and the share of pairs with a kept one among their ten nearest. A method that looks for the
# farthest or the hardest pairs finds the rare among them and the wrong as well; truth, where it is known, tells which.

# %%
kept = measure_methods_kept(run, cohort, method_names, arm_seeds, resamples, seed)
if not labelled:
    print("the cohort has no labels: what was kept of rare findings cannot be told")
if not run.has("truth.parquet"):
    print("the truth of this cohort is not known: what was kept of wrong, junk and duplicate pairs cannot be told")
summarise_kept(kept)

# %% [markdown]
# ## How stable the choice is
#
# The Jaccard index of what a method keeps from two seeds: another warm-up, and other draws. Two random subsets of this
# size have what the second column says.

# %%
stability = measure_stability(run, cohort, method_names, arm_seeds)
if stability.empty:
    print("one seed alone cannot tell how stable a choice is: use two or more")
stability.round(2)

# %% [markdown]
# And how alike methods are: the Jaccard index of what two of them keep, mean over seeds.

# %%
alike = compare_methods(run, cohort, method_names, arm_seeds)
alike.round(2)

# %% [markdown]
# ## Train on it
#
# From the shared warm-up, for as many epochs as the curated arm, on the method's subset. An arm is charged the pass that
# scored the pairs and the time of choosing; random choice looks at nothing and is charged nothing. Learnability is
# charged the reference's pass but not its training.

# %%
same_data = {name: name_method_arm(name) for name in method_names}
if labelled:
    train_arms(run, ["curated", *same_data.values()], arm_seeds, config, device, arms_at_once)
    costs = read_costs(run, ["curated", *same_data.values()], arm_seeds)
    display(tabulate_costs(costs))
else:
    print("the cohort has no labels to judge a model by: nothing is trained")

# %% [markdown]
# At the same compute every method may spend what the curated arm spends. Most do so already, because they score and
# train as it does: within 3 % both are the same training, and it is not done twice. Those listed here, random choice
# among them, are trained anew, for more steps or for fewer.

# %%
same_compute = {}
if labelled:
    same_compute = plan_same_compute(costs, method_names)
    anew = sorted(set(same_compute.values()) - set(same_data.values()))
    print(f"trained anew for the same compute: {', '.join(anew) or 'none'}")
    if anew:
        train_arms(run, anew, arm_seeds, config, device, arms_at_once)

# %% [markdown]
# ## How well a model trained on it classifies
#
# Zero-shot AUROC with the prompts chosen on validation, over all findings and by tier of prevalence in training, on the
# enriched test set where there is one, because a plain one holds too few rare findings. Intervals draw patients and
# seeds. Differences from random choice are paired by patient and seed; p values are corrected by Holm over the methods.

# %%
rows = [kept, list_stability(stability, cohort)]
if labelled:
    evaluation = Evaluation(run, cohort, open_pixel_store(run), resamples, seed, False, str(choose_device(device)))
    budgets = {"same_data": same_data, "same_compute": same_compute}
    trained = measure_methods_zero_shot(evaluation, budgets, arm_seeds, arms_at_once)
    rows.append(trained)
    display(summarise_trained(trained))
results = add_results(run, pd.concat([table for table in rows if len(table)], ignore_index=True))

# %% [markdown]
# ## The comparison

# %%
table = tabulate_comparison(results)
comparison = plot_method_comparison(table)
save_figure(run, comparison, "method_comparison", describe_method_comparison(table), list_comparison(table))
comparison

# %% [markdown]
# ## Which method when
#
# Strengths and weaknesses by the intervals at the same data; the best of all is the best mean, which may lie within the
# reach of chance. Operations are those of the arm over those of random choice.

# %%
advise_methods(results).round(2)

# %% [markdown]
# The same in sentences, made from the numbers:

# %%
for sentence in state_comparison(results):
    print(sentence)

# %% [markdown]
# ## What must hold

# %%
budget = count_budget(keep, len(train))
for (name, one), subset in subsets.items():
    assert len(subset) == budget, f"{name}, seed {one}: the budget was not met"
    assert set(subset.image_id) <= set(train.image_id), f"{name}, seed {one}: it chose other than training pairs"
assert set(table.method) == set(method_names), "a method was not measured"
ratios = results[(results.task == "method_curation") & (results.metric == "keep_ratio")]
assert ratios.value.sub(budget / len(train)).abs().max() < 1e-9, "the methods did not keep equally much"
print(f"every method kept {budget:,} training pairs")
if labelled:
    spent = read_costs(run, ["curated", *same_compute.values()], arm_seeds).groupby("arm").flops.mean()
    assert abs(spent[same_compute["random"]] / spent["curated"] - 1) < 0.1, "the same compute is not the same"
    scored = read_costs(run, same_data.values(), arm_seeds).groupby("arm").pairs_scored.min()
    assert scored.pop("by_random") == 0, "random choice was charged for scores"
    assert (scored >= len(train)).all(), "a method was not charged for its scores"
    assert set(trained.seed) == {OVER_SEEDS, *arm_seeds}
    print("at the same compute random choice spent what the curated arm spent, and scores were charged")
