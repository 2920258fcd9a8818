# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 11. Plan the labels
#
# **What it shows.** How many labelled radiographs a finding needs on a frozen encoder: measured learning curves, the
# families of curves that fit them, what few labels forecast and how often that comes true, and the labels, hours and
# money a target AUROC takes, or why that cannot be told yet. It repeats the claim of "How many samples to label" that
# the slope from 50 labelled cases predicts the plateau, and prints what came out.
#
# **What it costs.** About four minutes for the default study on 2 cores: features of 4 encoders, then 25,000 heads and
# their fits. With 100,000 images minutes an encoder more; on a GPU only the features get faster.

# %% tags=["parameters"]
study = "demo"  # name of the study, the folder under runs/
change = False  # give the study other values than it has, and tell what is stale from then on
seed = 0  # first seed of the arms, and seed of the resampling
encoders: list[str] = ["curated", "random_same_data", "full", "untrained"]  # arms, untrained, Hub ids or folders
draws = 20  # draws of patients at each label count
grid: list[int] = [10, 15, 20, 30, 40, 50, 70, 100, 150, 200, 300, 500, 700, 1000, 1500, 2000]  # label counts
unit = "cases"  # what is counted: cases, at natural prevalence, or positives
balance = "natural"  # negatives that come with positives: natural, or equal, which needs the unit positives
nested = False  # let each draw hold the smaller ones
budget_head = "logistic"  # head of the curves: logistic, or linear (dropout and projection, as published; slower)
early = 50  # label count the published claim is for
forecast_from: list[int] = [50, 100, 200, 500]  # label counts to forecast from
target = 0.85  # AUROC to plan for
pool_findings = True  # infer the curves of all findings of an encoder together
population = False  # plan for patients at large, adding the test set's own uncertainty
minutes_per_case = 2.0  # a reader's time for one case
readers = 1  # readers of every case
price_per_hour = 100.0  # of one reader
currency = "EUR"  # as written behind an amount
resamples = 1000  # bootstrap resamples of patients
device = "auto"  # auto, cpu or cuda

# %%
from chexstudy.plots import figures
from chexstudy.study import open_study

study = open_study("11_plan_labels", globals())

# %% [markdown]
# ## T1. What there is to draw
#
# Labels are drawn from the training split and judged on patients held out. Findings and label counts that cannot be drawn
# are listed with the reason; no count of cases is drawn that would hold no positive at the finding's prevalence.

# %%
from chexstudy.plots.label_budget import select_prevalence

prevalence = select_prevalence(study.cohort)
figures.label_prevalence.show(study, prevalence)

# %%
from chexstudy.label_planning.curves import CurveDesign
from chexstudy.label_planning.study_planning import LabelPlanning

design = CurveDesign((*grid, "all"), draws, unit, balance, nested, head=budget_head, seed=seed)
planning = LabelPlanning(study.evaluation(), encoders, design, pool_findings, early, forecast_from)
planning.refused.assign(n=planning.refused.n.where(planning.refused.n > 0, "any"))

# %% [markdown]
# ## Measure
#
# Each encoder is frozen once; `untrained` is the first arm's architecture with random weights. All encoders see the same
# draws of patients. A head has one setting, chosen for each encoder on validation for all findings together: these labels
# are spent, too.

# %%
planning.settings

# %% [markdown]
# ## L1. Learning curves
#
# The published law is AUROC(n) = α − β n^−γ. The planner's starts late where the data say so, and has a posterior in
# place of a point: findings of one encoder are inferred together, so that those with few labels borrow from the others.

# %%
figures.learning_curves.show(study, planning.table, planning.bands)

# %% [markdown]
# ## L2. Which family of curves
#
# Judged by label counts that were held out of the fit, beyond those fitted to and between them.

# %%
figures.curve_families.show(study, planning.families)

# %% [markdown]
# ## L3. Forecasts
#
# From the first labels alone, against what was measured with all of them. An interval that says 95 % should hold the
# truth in 95 of 100 curves; what it does is in the figure, with findings taken together and each alone.

# %%
figures.label_forecasts.show(study, planning.accuracy, planning.accuracy_alone)

# %% [markdown]
# ## L5. The early slope and the published claim

# %%
print(planning.claim)
figures.early_slope.show(study, planning.forecasts, planning.correlations, early)

# %% [markdown]
# ## L4. Labels for a target
#
# How many more labels, from all that there are. Where the interval has no end the answer
# is that it cannot be told yet. Prices are of what is to be read.

# %%
from chexstudy.label_planning.costs import ReadingCost, tabulate_readings

reading = ReadingCost(minutes_per_case, readers, price_per_hour)
plans, priced = planning.plan(target, reading, prevalence, population)
figures.labels_needed.show(study, plans, priced)

# %%
tabulate_readings(priced, currency).round(1)

# %% [markdown]
# ## Into the results table

# %%
from chexstudy.results import add_results

rows = add_results(study.run, planning.list_rows(plans))
len(rows)

# %% [markdown]
# ## What must hold
#
# And what the plan says of the first encoder, in sentences made from its numbers.

# %%
from chexstudy.label_planning.planner import state_plans

assert rows.query("task == 'learning_curve' and metric == 'auroc'").value.dropna().between(0, 1).all()
for sentence in state_plans(plans):
    print(sentence)
