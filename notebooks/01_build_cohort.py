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
# **What it costs.** About a minute for the default study (8,000 drawn radiographs of 96 pixels on 2 cores); at paper
# scale about an hour of image reading for every 400,000 radiographs and core.

# %% tags=["parameters"]
study = "demo"  # name of the study, the folder under runs/
change = False  # give the study other values than it has, and tell what is stale from then on
cohort_seed = 0  # seed of the phantom, of splits and of template reports; trainings have their own
source = "phantom"  # phantom, joint (many at once), or one of `chexstudy cohort sources`
data_root = ""  # folder of a real source, or the manifest of many
pairs = 8000  # phantom: number of image-report pairs
permutation_seed = -1  # phantom: seed that permutes which finding is how rare; -1 for the natural order
image_size = 96  # side of the stored images in pixels
fit = "pad"  # how images become square: pad (nothing is lost) or crop (as published, loses the edges)
workers = 2  # processes that draw and read images
orientation = "check"  # images that lie wrong: check (find them), mend (turn the stored pixels back too) or skip
duplicates = "keep"  # copies and second exposures: keep, one_per_group (the one nearest to the test) or drop (none)

# %%
from chexstudy.plots import figures
from chexstudy.study import open_study

study = open_study("01_build_cohort", globals())

# %% [markdown]
# ## Read every image once
#
# Each image is decoded, checked, made square and stored as 8-bit pixels. A file that is missing, truncated, blank or no
# image at all goes to the quarantine list with its reason, and the run goes on.

# %%
from chexstudy.cohort.build import build_cohort
from chexstudy.cohort.phantom.plan import PhantomConfig
from chexstudy.cohort.quality import count_quarantine

phantom = PhantomConfig(pairs, image_size, cohort_seed, permutation_seed, workers=workers)
_, notes = build_cohort(
    study.run, source, data_root, image_size, fit, cohort_seed, phantom, workers, orientation, duplicates
)
cohort, quarantine = study.cohort, study.run.read_table("quarantine.parquet")
print(f"{len(cohort):,} usable pairs of {cohort.patient_id.nunique():,} patients, {len(quarantine)} set aside")
for note, number in notes.items():
    print(f"{note.replace('_', ' ')}: {number}")

# %%
count_quarantine(quarantine)

# %% [markdown]
# ## How the images lie
#
# Which images are negative, rotated, mirrored, lateral or unlike the others, by a score that learned from this cohort's
# own images what is upright. Nothing is changed unless `orientation` is `mend`. Look at mirrored images before they are
# turned: a heart on the right side looks the same. The second table says what would be found here: of the sound images,
# had they lain so. Where that is less than half of the mirrored ones, none is called mirrored.

# %%
from chexstudy.cohort.orientation import read_orientation
from chexstudy.plots.radiographs import collect_orientation

found, power = read_orientation(study.run)
found.groupby("found").agg(images=("image_id", "size"), median_probability=("probability", "median")).round(3)

# %%
power.round(3)

# %%
figures.orientation.show(study, collect_orientation(study, found), seed=cohort_seed)

# %% [markdown]
# ## Near-duplicates
#
# Images of one exposure under several names, whatever was done to a copy since (resized, cropped, turned, inverted,
# compressed), and second exposures within a study: by the sources and splits that a group lies in. A group in two
# splits makes every measurement too good, unless `duplicates` is `one_per_group` or `drop`.

# %%
from chexstudy.cohort.near_duplicates import count_near_duplicates, tabulate_near_duplicates
from chexstudy.plots.radiographs import collect_duplicates

groups = tabulate_near_duplicates(study.run, workers)
count_near_duplicates(groups)

# %%
figures.duplicates.show(study, collect_duplicates(study, groups), seed=cohort_seed)

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
from chexstudy.plots.composition import count_findings, count_report_lengths

findings = count_findings(cohort, "train").sort_values("present", ascending=False, ignore_index=True)
findings

# %% [markdown]
# ## What each source calls a finding
#
# Where sources are joined, the same finding goes by one name, and nothing else is merged: a mass of one source is no
# nodule or mass of another. Empty: the source does not state it, which is not absent.

# %%
from chexstudy.cohort.adapters import tabulate_crosswalk

tabulate_crosswalk(cohort) if cohort.source.nunique() > 1 else "one source, and no names to join"

# %% [markdown]
# ## What sources are known to share
#
# What a test or validation set shares with training was taken out of training where a patient number, an image name or
# an owner's file tells it (the count stands above); what only looking tells stays, and results say `seen`.

# %%
from chexstudy.cohort.overlaps import tabulate_overlaps

tabulate_overlaps(cohort.source)

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
figures.composition.show(study, cohort, quarantine)

# %% [markdown]
# ## A look at the radiographs
#
# One image of each of the most common findings and of some rare ones, from the training split; on the phantom the true
# outline of the finding is drawn in. A cohort without labels shows its first images.

# %%
from chexstudy.plots.radiographs import collect_radiographs

figures.radiographs.show(study, collect_radiographs(study), seed=cohort_seed)

# %% [markdown]
# ## What must hold
#
# These are the promises later notebooks rely on.

# %%
assert cohort.groupby("patient_id").split.nunique().max() == 1, "a patient lies in two splits"
assert list(study.pixels.image_ids) == list(cohort.image_id), "pixels and cohort list other images"
assert not set(quarantine.image_id) & set(cohort.image_id), "an image was kept and set aside"
rare = findings[(findings.present > 0) & (findings.prevalence < 0.01)]
print(
    f"{len(cohort):,} images of {cohort.patient_id.nunique():,} patients, none in two splits, are stored at "
    f"{image_size} pixels; {len(quarantine):,} are in quarantine with a reason."
)
print(f"{len(rare)} of {len(findings)} findings are on fewer than 1 % of the training images: they are the tail.")
