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
# **What it costs.** About eleven minutes for the default study on 2 cores (17 methods, 3 seeds, some 57 short trainings);
# on real cohorts one training on the subset, at paper scale about 70 H100-hours, for each method and seed.

# %% tags=["parameters"]
study = "demo"  # name of the study, the folder under runs/
change = False  # give the study other values than it has, and tell what is stale from then on
seed = 0  # first seed of the arms, and seed of the resampling
seeds = 5  # number of seeds; comparisons are paired by seed
methods: list[str] = []  # methods to compare; empty for all, and random is always among them
keep = 0.227  # share of the training pairs that every method keeps, or above 1 their number
device = "auto"  # auto, cpu or cuda
arms_at_once = 2  # arms trained and evaluated side by side; 1 on a GPU
resamples = 1000  # bootstrap resamples of patients

# %%
from chexstudy.plots import figures
from chexstudy.results import add_results
from chexstudy.study import open_study

study = open_study("08_compare_curators", globals())

# %% [markdown]
# ## The methods
#
# All take the embeddings of the pairs; what some need beside them is in the last column.

# %%
import pandas as pd

from chexstudy.curation.methods import METHODS
from chexstudy.pretraining.training.subsets import choose_methods

names = choose_methods(methods)
described = {name: (METHODS[name].summary, METHODS[name].paper, ", ".join(METHODS[name].needs)) for name in names}
pd.DataFrame.from_dict(described, orient="index", columns=["keeps", "source", "needs beside features"])

# %% [markdown]
# ## Choose
#
# The curated arm curates while it trains. Here every method looks once, at the model of the end of the warm-up: it is
# given the same embeddings and the same losses, and chooses as many pairs. Learnability also needs a model that has seen
# all pairs, the arm trained on all data; a study that has none would have to train it first. `filtered` ranks by the same
# embeddings: where the model cannot yet tell matched from shuffled pairs, as at the start of the default study, it
# abstains, says so and chooses as the bands do; the arm of that name in notebook 4 asks a pair that was aligned before.

# %%
from chexstudy.pretraining.training.subsets import choose_training_subsets, train_scoring_arms

train_scoring_arms(study.run, names, study.seeds, study.config, device, arms_at_once)
subsets = choose_training_subsets(study.run, names, study.seeds, study.config, keep, device)
print(f"each method keeps {len(subsets[names[0], seed]):,} of {len(study.train):,} pairs")

# %% [markdown]
# ## What each kept
#
# Measured before anything is trained. Enrichment is the fraction selected of a tier's pairs over that of all: 1 is
# chance. Redundancy is the cosine of a kept pair to the nearest other kept one. Coverage asks how far the dropped are
# from the kept: the radius, and the share of pairs with a kept one among their ten nearest. A method that looks for the
# farthest or the hardest pairs finds the rare among them and the wrong as well; truth, where it is known, tells which.

# %%
from chexstudy.experiments.curator_comparison import measure_methods_kept
from chexstudy.experiments.curator_tables import summarise_kept

kept = measure_methods_kept(study.run, study.cohort, names, study.seeds, resamples, seed)
summarise_kept(kept)

# %% [markdown]
# ## How stable the choice is
#
# The Jaccard index of what a method keeps from two seeds: another warm-up, and other draws. Two random subsets of this
# size have what the second column says. One seed alone cannot tell.

# %%
from chexstudy.experiments.curator_comparison import compare_methods, list_stability, measure_stability

stability = measure_stability(study.run, study.cohort, names, study.seeds)
stability.round(2)

# %% [markdown]
# And how alike methods are: the Jaccard index of what two of them keep, mean over seeds.

# %%
compare_methods(study.run, study.cohort, names, study.seeds).round(2)

# %% [markdown]
# ## Train on it
#
# From the shared warm-up, for as many epochs as the curated arm, on the method's subset. An arm is charged the pass that
# scored the pairs and the time of choosing; random choice looks at nothing and is charged nothing. Learnability is
# charged the reference's pass but not its training.
#
# At the same compute every method may spend what the curated arm spends. Most do so already, because they score and
# train as it does: within 3 % both are the same training, and it is not done twice. Those that are listed, random choice
# among them, are trained anew, for more steps or for fewer. Without labels no model can be judged, and none is trained.

# %%
from chexstudy.experiments.curator_comparison import compare_spending, train_methods

budgets = train_methods(study.run, study.cohort, names, study.seeds, study.config, device, arms_at_once)
spending = compare_spending(study.run, budgets, study.seeds)
spending.round(3)

# %% [markdown]
# ## How well a model trained on it classifies
#
# Zero-shot AUROC with the prompts chosen on validation, over all findings and by tier of prevalence in training, on the
# enriched test set where there is one, because a plain one holds too few rare findings. Intervals draw patients and
# seeds. Differences from random choice are paired by patient and seed; p values are corrected by Holm over the methods.

# %%
from chexstudy.experiments.curator_comparison import measure_methods_zero_shot
from chexstudy.experiments.curator_tables import summarise_trained

trained = measure_methods_zero_shot(study.evaluation(probe=False), budgets, study.seeds, arms_at_once)
measured = [kept, list_stability(stability, study.cohort), trained]
results = add_results(study.run, pd.concat([table for table in measured if len(table)], ignore_index=True))
summarise_trained(trained)

# %% [markdown]
# ## The comparison

# %%
from chexstudy.experiments.curator_comparison import tabulate_comparison

figures.method_comparison.show(study, tabulate_comparison(results))

# %% [markdown]
# ## What must hold

# %%
from chexstudy.curation.choice import count_budget

budget = count_budget(keep, len(study.train))
assert {len(subset) for subset in subsets.values()} == {budget}, "a method missed the budget"
ratios = results[(results.task == "method_curation") & (results.metric == "keep_ratio")]
assert ratios.value.sub(budget / len(study.train)).abs().max() < 1e-9, "the methods did not keep equally much"
random_choice = spending[spending.method == "random"]
assert (random_choice.pairs_scored == 0).all(), "random choice was charged for scores"
assert random_choice.same_compute.between(0.9, 1.1).all(), "the same compute is not the same"
assert (spending.pairs_scored[spending.method != "random"] >= len(study.train)).all(), "scores were not charged"

# %% [markdown]
# ## Which method for this cohort
#
# One cohort of this size and its own scorer tell methods apart by little. What was measured on large drawn pools that no
# scorer had seen (notebook 16) tells more, as far as this cohort resembles them: `chexstudy advise` weighs it by that.

# %%
from chexstudy.experiments.regimes.advice import advise
from chexstudy.experiments.regimes.advice_in_words import describe_advice, describe_cohort, tabulate_gains
from chexstudy.experiments.regimes.cohort_measures import measure_study

measures = measure_study(study.run)
advice = advise(measures, keep, "scratch" if study.config.image_encoder.startswith("tiny-") else "upstream")
print(*describe_cohort(measures), *describe_advice(advice), sep="\n")
tabulate_gains(advice)
