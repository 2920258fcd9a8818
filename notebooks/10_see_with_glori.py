# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 10. See with GLoRI
#
# **What it shows.** Where a GLoRI head looks when it names a finding: the published overlay beside the confidences of all
# findings, and, where the true place is known, how often the head looks there, against chance and against maps that know
# nothing of the image.
#
# **What it costs.** A minute for the default study on 2 cores if notebook 9 has fitted the head, five more if not; at
# paper scale minutes for 1,000 images on a GPU, whose patches take 8.4 MB of disk each.

# %% tags=["parameters"]
study = "demo"  # name of the study, the folder under runs/
change = False  # give the study other values than it has, and tell what is stale from then on
seed = 0  # seed of the arm and of its head, and seed of the resampling
arm = "curated"  # trained arm whose frozen image encoder the head looks through
glori_heads: list[str] = ["glori_v1.local", "glori_v1", "glori_v2"]  # heads measured; examples are of the first
glori_epochs = 10  # epochs of GLoRI
glori_batch_size = 32  # images a step of GLoRI (published: 128); few labels want more steps
glori_learning_rates: list[float] = [1e-3, 3e-3]  # tried together, chosen on validation (published: 13, as the probe)
glori_width = 64  # dimension of GLoRI's queries, in heads of 16 (published: 768, in 8 heads of 96)
glori_standardise = True  # bring the channels of GLoRI's tokens to one scale (published: as they come from a ViT)
examples = 4  # radiographs to show
specificity = 0.9  # a finding counts as detected above this share of the validation images without it
resamples = 1000  # bootstrap resamples of patients
device = "auto"  # auto, cpu or cuda

# %%
from pathlib import PurePosixPath

import numpy as np
import pandas as pd
from IPython.display import display

from chexstudy.cohort.annotations import measure_lesion_sizes, read_regions
from chexstudy.cohort.prevalence import measure_prevalence
from chexstudy.cohort.pixels.store import open_pixel_store
from chexstudy.cohort.table import NO_FINDING, label_matrix, read_cohort
from chexstudy.evaluation.adaptation.run import adapt_arm, freeze_arm, load_head
from chexstudy.evaluation.context import Evaluation, tell_exposure
from chexstudy.evaluation.localisation.pointing_game import (
    absent_thresholds,
    choose_examples,
    measure_cases,
    read_attention,
    summarise_cases,
)
from chexstudy.evaluation.adaptation.recipes import find_glori, plan_glori
from chexstudy.results import add_results
from chexstudy.workflow.notebook import start_notebook
from chexstudy.plots.attention import (
    describe_attention,
    describe_pointing,
    make_cards,
    plot_attention,
    plot_pointing,
    select_attention,
    select_pointing,
)
from chexstudy.plots.style import save_figure
from chexstudy.devices import choose_device

run = start_notebook("10_see_with_glori", globals())
cohort = read_cohort(run.require("cohort.parquet"))
evaluation = Evaluation(run, cohort, open_pixel_store(run), resamples, seed, device=str(choose_device(device)))
findings, test_sets = evaluation.findings, evaluation.test_sets()
places = [finding for finding in findings if finding != NO_FINDING]  # what can be somewhere
encoder = f"{arm}, seed {seed}"
if not findings:
    print("the cohort has no labels: there is no finding to look for")

# %% [markdown]
# ## The head
#
# One query a finding, one layer of cross-attention over the patch tokens of the encoder's last four blocks: version 1 is
# the public code, version 2 the paper. `local` does not see the last block. In a convolutional encoder that one has seen
# the whole image, its tokens tell the same everywhere, and a query need not look at the finding to know of it. Heads
# that notebook 9 kept are taken where they are current; others are fitted here, learning rates chosen on validation.

# %%
heads = {}
if findings:
    glori = plan_glori(glori_epochs, glori_batch_size, glori_learning_rates, glori_width, glori_standardise)
    adapt_arm(evaluation, arm, seed, [find_glori(name, glori) for name in glori_heads])
    features = freeze_arm(evaluation, arm, seed, patches=True)
    heads = {name: load_head(run, arm, seed, name) for name in glori_heads}
    display(pd.concat({name: fitted.validation for name, fitted in heads.items()}).round(4))

# %% [markdown]
# ## Where findings are
#
# The phantom's true outlines, or the boxes that radiologists drew on NIH's images. The tuberculosis images have outlines
# of the lungs alone: there the question is only whether the head looks at lungs. A case is an image with a finding whose
# region is known.

# %%
regions = {}
if findings:
    size, fit = evaluation.store.size, evaluation.store.fit
    for name, rows in test_sets.items():
        regions[name] = read_regions(run, rows, places, size, fit)
        print(f"{name}: {regions[name].missing or f'{len(regions[name].table)} cases'}")

# %% [markdown]
# ## X1. Attention and confidences
#
# Chosen by rule, not by hand: findings in order of the size of their lesions, the smallest first (the rarest first where
# sizes are not known); of each, the first test image that has it and on which the head detects it. Detected means: above
# the score that 90 % of the validation images without the finding stay under (`specificity`).

# %%
cards = []
if findings:
    shown = max(test_sets, key=lambda name: len(regions[name].table))
    rows, sizes = test_sets[shown].reset_index(drop=True), measure_lesion_sizes(regions[shown])
    validation = cohort[cohort.split == "validate"]
    fitted = heads[glori_heads[0]]
    scores = fitted.score(features, rows.image_id)
    thresholds = absent_thresholds(
        fitted.score(features, validation.image_id), label_matrix(validation, findings), specificity
    )
    rarest = measure_prevalence(evaluation.training).sort_values().index
    order = [one for one in (sizes.index if len(sizes) else rarest) if one in places]
    known = set(regions[shown].table.image_id) or None
    chosen = choose_examples(rows, scores, thresholds, findings, order, examples, known)
    if len(chosen):
        number = pd.Index(findings).get_indexer(chosen.finding)
        weights = read_attention(fitted.head, features, chosen.image_id, np.arange(len(chosen)), number)[0]
        pixels = evaluation.store.read(chosen.image_id)
        cards = make_cards(chosen, rows, scores, findings, weights, pixels, regions[shown])

# %%
if cards:
    rule = (
        f"Examples by rule, from {shown}: of the findings with the smallest lesions (the rarest where sizes are not "
        f"known) the first image on which the finding is detected at {specificity:.0%} specificity on validation."
    )
    caption = describe_attention(cards, glori_heads[0], encoder, rule)
    overlay = plot_attention(cards)
    save_figure(run, overlay, "attention", caption, select_attention(cards))
    display(overlay)
else:
    print("no finding was detected on a test image where its place is known: there is no example to show")

# %% [markdown]
# ## Does it look at the finding?
#
# Pointing game: is the maximum of the map inside the region? Mass: how much of the attention is? Chance for both is the
# region's share of the image. The harder rival is the head's own mean map over all images, which knows where a finding
# usually is and nothing of the image; `over_mean_map` is the paired difference to it.

# %%
measured = []
for head, fitted in heads.items():
    for name, rows in test_sets.items():
        cases = measure_cases(fitted.head, features, regions[name], rows, findings)
        options = {"resamples": resamples, "setting": head, "kind": regions[name].kind}
        table = summarise_cases(cases, rows, places, evaluation.generator(), **options)
        measured.append(table.assign(data_set=name))
if findings:
    place = {"arm": arm, "seed": seed, "exposure": tell_exposure(run, arm, seed)}
    attention = pd.concat(measured, ignore_index=True).assign(**place)
    results = add_results(run, attention)
    seen = attention[(attention.finding == "macro") & (attention.n > 0)].set_index(["data_set", "metric", "setting"])
    display(seen[["value", "ci_low", "ci_high", "n"]].sort_index().round(3))

# %%
for name in regions:
    if len(regions[name].table):
        pointing = plot_pointing(results, glori_heads[0], name)
        caption = describe_pointing(results, glori_heads[0], name, encoder)
        numbers = select_pointing(results, glori_heads[0], name)
        save_figure(run, pointing, f"pointing_{PurePosixPath(name).name}", caption, numbers)
        display(pointing)

# %% [markdown]
# ## What must hold

# %%
if findings:
    shares = attention[~attention.metric.str.contains("_over_") & attention.value.notna()]
    assert shares.value.between(0, 1).all()
    assert (attention.n[attention.value.notna()] > 0).all()
    assert set(attention.finding) == {*places, "macro"}, "a finding without a case keeps its row"
    print(f"{len(attention)} rows of attention in the results table, {len(cards)} examples shown")
