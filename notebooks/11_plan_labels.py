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
import numpy as np
import pandas as pd
from IPython.display import display

from chexstudy.cohort.pixels.store import open_pixel_store
from chexstudy.cohort.table import read_cohort
from chexstudy.label_planning.accuracy import (
    correlate_early,
    judge_early_claim,
    measure_families,
    measure_forecasts,
)
from chexstudy.label_planning.costs import ReadingCost, price_plans
from chexstudy.label_planning.curves import (
    CurveDesign,
    count_test_labels,
    measure_curves,
    plan_draws,
    read_settings,
)
from chexstudy.label_planning.encoders import freeze_encoders, list_exposures
from chexstudy.label_planning.fitting import compare_families
from chexstudy.label_planning.observations import list_curves
from chexstudy.label_planning.planner import (
    forecast_plateau,
    infer_by_encoder,
    plan_labels,
)
from chexstudy.label_planning.posterior import trace_bands
from chexstudy.label_planning.tabulation import tabulate_planning
from chexstudy.results import add_results
from chexstudy.workflow.notebook import start_notebook
from chexstudy.plots.label_budget import (
    describe_curves,
    describe_early,
    describe_families,
    describe_forecasts,
    describe_plans_drawn,
    describe_prevalence,
    plot_curves,
    plot_early,
    plot_families,
    plot_forecasts,
    plot_plans,
    plot_prevalence,
    select_curves,
    select_early,
    select_prevalence,
)
from chexstudy.plots.style import save_figure
from chexstudy.devices import choose_device

run = start_notebook("11_plan_labels", globals())
cohort = read_cohort(run.require("cohort.parquet"))
design = CurveDesign((*grid, "all"), draws, unit, balance, nested, head=budget_head, seed=seed)
reading = ReadingCost(minutes_per_case, readers, price_per_hour, currency=currency)
prevalence = select_prevalence(cohort)
counts, refused = plan_draws(cohort, design)
labelled = bool(counts)
if not labelled:
    print("no finding of the cohort has labels enough for a learning curve: there is nothing to plan from")

# %% [markdown]
# ## T1. What there is to draw
#
# Labels are drawn from the training split and judged on patients held out. Findings and label counts that cannot be drawn
# are listed with the reason; no count of cases is drawn that would hold no positive at the finding's prevalence.

# %%
if len(prevalence):
    available = plot_prevalence(prevalence)
    save_figure(run, available, "label_prevalence", describe_prevalence(prevalence), prevalence)
    display(available)

# %%
refused.assign(n=refused.n.where(refused.n > 0, "any")) if len(refused) else "every label count can be drawn"

# %% [markdown]
# ## Measure
#
# Each encoder is frozen once; `untrained` is the first arm's architecture with random weights. All encoders see the same
# draws of patients. A head has one setting, chosen for each encoder on validation for all findings together: these labels
# are spent, too.

# %%
if labelled:
    device_name = str(choose_device(device))
    features = freeze_encoders(run, cohort, open_pixel_store(run), encoders, seed, device_name)
    table = measure_curves(run, cohort, features, design)
    curves = list_curves(table)
    display(read_settings(run))

# %% [markdown]
# ## L1. Learning curves
#
# The published law is AUROC(n) = α − β n^−γ. The planner's starts late where the data say so, and has a posterior in
# place of a point: findings of one encoder are inferred together, so that those with few labels borrow from the others.

# %%
if labelled:
    posteriors = infer_by_encoder(curves, seed, pool_findings)
    bands = trace_bands(posteriors)
    learning = plot_curves(table, bands)
    save_figure(run, learning, "learning_curves", describe_curves(table, bands), select_curves(table, bands))
    display(learning)

# %% [markdown]
# ## L2. Which family of curves
#
# Judged by label counts that were held out of the fit, beyond those fitted to and between them.

# %%
if labelled:
    errors = compare_families(curves)
    by_family = measure_families(errors, np.random.default_rng(seed), resamples)
    if len(by_family):
        families = plot_families(by_family)
        save_figure(run, families, "curve_families", describe_families(by_family), by_family)
        display(families)
    else:
        print("the curves have too few label counts to leave one out")

# %% [markdown]
# ## L3. Forecasts
#
# From the first labels alone, against what was measured with all of them. An interval that says 95 % should hold the
# truth in 95 of 100 curves; what it does is in the figure, with findings taken together and each alone.

# %%
starts = sorted({early, *forecast_from})
if labelled:
    forecasts = forecast_plateau(curves, starts, seed, pool_findings)
    forecasts_alone = forecast_plateau(curves, starts, seed, pool=False)
    testable = bool(forecasts.error.notna().any())
    accuracy = measure_forecasts(forecasts, np.random.default_rng(seed), resamples)
    accuracy_alone = measure_forecasts(forecasts_alone, np.random.default_rng(seed), resamples)
    if testable:
        foretold = plot_forecasts(accuracy, accuracy_alone)
        save_figure(run, foretold, "label_forecasts", describe_forecasts(accuracy), accuracy)
        display(foretold)
    else:
        print("no curve has three label counts up to those asked for and one beyond: nothing was forecast")

# %% [markdown]
# ## L5. The early slope and the published claim

# %%
if labelled:
    correlations = correlate_early(forecasts, early, np.random.default_rng(seed), resamples)
    print(judge_early_claim(accuracy, correlations, early, unit))
    shown = (forecasts, correlations, early)
    if len(select_early(forecasts, early)):
        slopes = plot_early(*shown)
        save_figure(run, slopes, "early_slope", describe_early(*shown), select_early(forecasts, early))
        display(slopes)

# %% [markdown]
# ## L4. Labels for a target
#
# How many more labels, from all that there are; in words for the first encoder. Where the interval has no end the answer
# is that it cannot be told yet. Prices are of what is to be read.

# %%
if labelled:
    shares = dict(prevalence.set_index("finding").prevalence)
    test_counts = count_test_labels(cohort, counts) if population else None
    plans = plan_labels(curves, target, seed, pool_findings, reading.price(1), shares, test_counts)
    for row in plans[plans.encoder == plans.encoder[0]].itertuples():
        print(f"{row.finding}, {row.encoder}: {row.answer}.")

# %%
if labelled:
    observed = prevalence.set_index("finding").known_train
    priced = price_plans(plans, reading, shares, dict(observed))
    needed = plot_plans(plans)
    save_figure(run, needed, "labels_needed", describe_plans_drawn(plans), priced)
    display(needed)
    columns = {"read": "cases to read", "read_low": "at least", "read_high": "at most", "hours": "hours of reading"}
    columns |= {"price": f"price ({currency})", "price_high": f"price at most ({currency})"}
    open_plans = priced[priced.state != "reached"].rename(columns=columns)
    display(open_plans[["encoder", "finding", "state", *columns.values()]].round(1))

# %% [markdown]
# ## Into the results table

# %%
rows = pd.DataFrame()
if labelled:
    exposures = list_exposures(features)
    rows = add_results(run, tabulate_planning(table, refused, accuracy, forecasts, plans, errors, exposures))
rows.groupby(["task", "metric"]).size() if labelled else "nothing was measured"

# %% [markdown]
# ## What must hold

# %%
if labelled:
    assert set(table.encoder) | {"all"} == set(exposures)
    assert table.auroc.between(0, 1).all()
    everything = table.groupby(["encoder", "finding"]).n.max()
    assert (everything <= (cohort.split == "train").sum()).all()
    assert (plans.need_low <= plans.need_high).all()
    assert {"learning_curve", "label_forecast", "label_plan", "curve_family"} <= set(rows.task)
print(f"{len(counts)} findings with a learning curve")
