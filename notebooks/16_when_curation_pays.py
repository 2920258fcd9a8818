# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 16. When curation pays
#
# **What it shows.** Where choosing pairs is worth more than drawing them at random, and where it is not: over pools,
# budgets, shares of wrong pairs and of copies, scorers and starts; what the gain is made of, and what it costs besides.
#
# **What it costs.** Seconds with the outcomes that come with the package. To measure some questions anew takes about a
# minute of one core for each training (`make regimes`: the cells of the first figure at 3 pools, about an hour on 2 cores).

# %% tags=["parameters"]
study = "demo"  # name of the study, the folder under runs/, which gets the figures
change = False  # give the study other values than it has, and tell what is stale from then on
seed = 0  # seed of the first pool, of those that are measured here
questions: list[str] = []  # questions to measure here; empty shows the outcomes that come with the package
pools = 3  # number of pools of each cell that is measured here
methods: list[str] = []  # methods to compare; empty for all, and random is always among them
arms_at_once = 2  # arms trained and evaluated side by side; 1 on a GPU

# %%
from chexstudy.plots import figures
from chexstudy.study import open_study

study = open_study("16_when_curation_pays", globals())

# %% [markdown]
# ## The bench
#
# Everything here is drawn: radiographs, reports, and which pairs are wrong. A pool of patients, whom neither the scorer
# nor the pretrained encoders have seen, is drawn for each seed, with test patients of its own. A scorer embeds the pool
# once, each method chooses exactly the budget, and a small model is trained on what was chosen, by as many steps for each
# method. Which finding is how rare is permuted by the seed. [The plan](../docs/regimes_plan.md) was written before
# anything was run.

# %%
import pandas as pd

from chexstudy.experiments.regimes.design import read_design

design = read_design()
asked = {name: (one.asks, len(one.cells), len(one.methods), one.seeds) for name, one in design.questions.items()}
pd.DataFrame.from_dict(asked, orient="index", columns=["asks", "cells", "methods", "pools planned"])

# %% [markdown]
# ## Outcomes
#
# One row a training. Those that come with the package are of the whole design. If questions are named above, their
# trainings are done here, unless an earlier run has done them, and all that was ever measured here is shown instead.

# %%
from chexstudy.experiments.regimes.bench import run_bench
from chexstudy.experiments.regimes.evidence import read_evidence

if questions:
    run_bench(design.list_jobs(questions, pools, seed, methods), design.methods, arms_at_once)
outcomes = read_evidence(own=bool(questions))
print(f"{len(outcomes):,} trainings of {outcomes.method.nunique()} methods, {outcomes.seed.nunique()} pools.")

# %% [markdown]
# ## Answers
#
# Each method minus a random choice of as many pairs of the same pool. Pools have patients of their own, so that the
# spread of their differences holds every source of chance; intervals are Student's t over pools, 95 %. A star: p below
# 0.05 after Holm's correction over the cells and methods of the question. All else is secondary to the main contrast,
# the first question's: filter of one half, then bands at the budget, all findings.

# %%
from IPython.display import Markdown, display

from chexstudy.experiments.regimes.contrasts import answer_questions, tabulate_answer
from chexstudy.plots.regime_parts import COSTS
from chexstudy.plots.regimes import AUROCS

shown = ["zero_shot_auroc_macro", "zero_shot_auroc_tail", "probe_auroc_macro", "probe_auroc_tail"]
answers = answer_questions(outcomes, design, [*AUROCS, *COSTS])
for name in dict.fromkeys(answers.question):
    display(Markdown(f"**{name}**: {design.questions[name].asks}"))
    display(tabulate_answer(answers, design.questions[name], shown))

# %% [markdown]
# The filter says what it sees of a pool before anything is trained, and abstains where its scorer cannot tell matched
# pairs from shuffled ones:

# %%
with pd.option_context("display.max_colwidth", None):
    told = outcomes[(outcomes.method == "filtered") & (outcomes.start == "scratch")]
    display(told.drop_duplicates(["pool", "wrong", "scorer"])[["pool", "wrong", "scorer", "seed", "note"]])

# %% [markdown]
# ## Where it pays
#
# Only measured cells are drawn. First a mismatch filter before the bands, zero-shot and by linear probe, whose scores vary
# less from pool to pool; then the published bands alone.

# %%
figures.regimes_phase.show(study, answers)

# %%
figures.regimes_phase_probe.show(study, answers)

# %%
figures.regimes_phase_bands.show(study, answers)

# %% [markdown]
# Along one condition at a time:

# %%
figures.regimes_curves.show(study, answers)

# %%
figures.regimes_curves_probe.show(study, answers)

# %% [markdown]
# ## What the gain is made of
#
# Choices that know the truth take the wrong pairs out, or the films without a finding, or make labels even; others have
# the filter without diversity, or diversity without the filter. If sound pairs at random gain as much as the method, its
# gain is noise removed and nothing else.

# %%
from chexstudy.experiments.regimes.contrasts import compare_main
from chexstudy.plots.regime_parts import STEPS

steps = compare_main(outcomes, STEPS, AUROCS)
figures.regimes_parts.show(study, answers, steps)

# %% [markdown]
# ## What it costs besides
#
# A gain in AUROC may be paid for by healthy patients, by calibration, by retrieval, or by dropping a group.

# %%
figures.regimes_costs.show(study, answers)

# %% [markdown]
# ## Every method against random

# %%
figures.regimes_methods.show(study, answers)

# %% [markdown]
# ## Where chance comes from
#
# One training's gain differs between pools, between choices within a pool and between trainings on one choice. Told
# where the centre was measured with two choices in a pool and two trainings of each.

# %%
from chexstudy.experiments.regimes.contrasts import split_variance, take_question

repeated = take_question(outcomes, design.questions["sources"])
if repeated.choice.nunique() > 1 and repeated.training.nunique() > 1:
    display(split_variance(repeated).round(5))

# %% [markdown]
# ## What must hold

# %%
keys = ["pool", "budget", "wrong", "duplicates", "scorer", "start", "side", "method", "seed", "choice", "training"]
assert not outcomes.duplicated(keys).any(), "a training stands twice"
assert (answers.gain - (answers.value - answers.reference)).abs().max() < 1e-9, "a gain is not a difference of means"
known = answers.dropna(subset=["ci_low"])
assert known.gain.between(known.ci_low, known.ci_high).all(), "a gain lies beside its interval"
assert answers.p_holm.dropna().between(0, 1).all(), "a p value is none"
main = answers[(answers.method == "filtered_budgeted_half") & (answers.metric == "zero_shot_auroc_macro")]
for row in main.drop_duplicates(keys[:7]).itertuples():
    print(
        f"{row.pool:,} pairs, {row.budget:,} chosen, {row.wrong:.0%} wrong, {row.start}: {row.gain:+.3f}, n = {row.pools}"
    )
