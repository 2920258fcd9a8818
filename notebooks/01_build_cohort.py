# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 1. Build the cohort
#
# **What it shows.** Which images, patients and reports the study stands on, what was set aside and why, and that no
# patient lies in two splits. Everything later reads what this notebook writes.
#
# **What it costs.** About a minute for the default study (6,000 drawn radiographs of 96 pixels on 2 cores); at paper
# scale about an hour of image reading for every 400,000 radiographs and core.

# %% tags=["parameters"]
study = "demo"  # name of the study, the folder under runs/
change = False  # give the study other values than it has, and tell what is stale from then on
cohort_seed = 0  # seed of the phantom, of splits and of template reports; trainings have their own
source = "phantom"  # phantom, nih, nlm_tb, webdataset, huggingface, or folder (images, a table, cohort.yaml)
data_root = ""  # folder of a real source
pairs = 6000  # phantom: number of image-report pairs
permutation_seed = -1  # phantom: seed that permutes which finding is how rare; -1 for the natural order
image_size = 96  # side of the stored images in pixels
fit = "pad"  # how images become square: pad (nothing is lost) or crop (as published, loses the edges)
workers = 2  # processes that draw and read images

# %%
import numpy as np
import pandas as pd

from chexstudy.cohort.build import build_cohort
from chexstudy.cohort.phantom.masks import read_masks
from chexstudy.cohort.phantom.plan import PhantomConfig
from chexstudy.cohort.quality import count_quarantine
from chexstudy.cohort.table import finding_columns, label_matrix, read_cohort
from chexstudy.workflow.notebook import start_notebook
from chexstudy.plots.composition import (
    count_findings,
    count_report_lengths,
    describe_composition,
    plot_composition,
)
from chexstudy.plots.radiographs import plot_radiographs
from chexstudy.plots.style import save_figure

run = start_notebook("01_build_cohort", globals())
phantom = PhantomConfig(pairs, image_size, cohort_seed, permutation_seed, workers=workers)

# %% [markdown]
# ## Read every image once
#
# Each image is decoded, checked, made square and stored as 8-bit pixels. A file that is missing, truncated, blank or no
# image at all goes to the quarantine list with its reason, and the run goes on.

# %%
store, notes = build_cohort(run, source, data_root, image_size, fit, cohort_seed, phantom, workers)
cohort = read_cohort(run.path("cohort.parquet"))
quarantine = pd.read_parquet(run.path("quarantine.parquet"))
print(f"{len(cohort):,} usable pairs of {cohort.patient_id.nunique():,} patients, {len(quarantine)} set aside")
for note, number in notes.items():
    print(f"{note.replace('_', ' ')}: {number}")

# %%
count_quarantine(quarantine)

# %% [markdown]
# ## Who is in which split

# %%
cohort.groupby(["source", "split"]).agg(
    images=("image_id", "size"),
    patients=("patient_id", "nunique"),
    women=("sex", lambda sex: (sex == "F").mean().round(2)),
    median_age=("age_years", "median"),
    AP=("view", lambda view: (view == "AP").mean().round(2)),
    template_reports=("report_origin", lambda origin: (origin == "template").mean().round(2)),
)

# %% [markdown]
# ## How common each finding is
#
# Training split. The tail is what curation is about: a random subset of a fifth keeps a fifth of very few.

# %%
count_findings(cohort, "train").sort_values("present", ascending=False, ignore_index=True)

# %% [markdown]
# ## How long the reports are
#
# Words by source, with the percentiles that CheXficient reports in tokens.

# %%
count_report_lengths(cohort).round(1)

# %% [markdown]
# ## C12. Composition of the cohort
#
# CheXficient's data table, drawn: sources, splits, views, ages, findings, co-occurrence, report lengths.

# %%
composition = plot_composition(cohort, quarantine)
save_figure(run, composition, "composition", describe_composition(cohort, quarantine), count_findings(cohort))
composition

# %% [markdown]
# ## A look at the radiographs
#
# One image of each of the most common findings and of some rare ones, from the training split; on the phantom the true
# outline of the finding is drawn in. A cohort without labels shows its first images.

# %%
train = cohort[cohort.split == "train"].reset_index(drop=True)
findings = finding_columns(cohort)
present = pd.DataFrame(label_matrix(train, findings) == 1, columns=findings)
shown = [name for name in present.sum().sort_values(ascending=False).index if present[name].any()][:24]
alone = present.sum(axis=1)
rows = [alone[present[name]].sort_values(kind="stable").index[0] for name in shown] or list(train.index[:24])
titles = shown or [f"{train.view[row]}, {train.sex[row]}" for row in rows]

# %%
ids = list(train.image_id[rows])
masks = None
if shown and run.has("truth_masks.parquet"):
    drawn = [read_masks(run.path("truth_masks.parquet"), image_id) for image_id in ids]
    masks = [{"true outline": mask[name]} if name in mask else {} for name, mask in zip(titles, drawn, strict=True)]
radiographs = plot_radiographs(list(store.read(ids)), titles, masks)
what = f"One training radiograph for each of {len(shown)} labels" if shown else f"{len(rows)} training radiographs"
save_figure(run, radiographs, "radiographs", f"{what}, {image_size} pixels a side; seed {cohort_seed}; no interval.")
radiographs

# %% [markdown]
# ## What must hold
#
# These are the promises later notebooks rely on.

# %%
splits_of_patient = cohort.groupby("patient_id").split.nunique()
assert splits_of_patient.max() == 1, "a patient lies in two splits"
assert cohort.image_id.is_unique
assert store.images.shape == (len(cohort), image_size, image_size)
assert np.array_equal(store.image_ids, cohort.image_id)
assert not set(quarantine.image_id) & set(cohort.image_id)
print("no patient in two splits, every kept image stored, every other one in quarantine with a reason")
