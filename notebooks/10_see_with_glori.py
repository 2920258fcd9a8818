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
from chexstudy.plots import figures
from chexstudy.results import add_results
from chexstudy.study import open_study

study = open_study("10_see_with_glori", globals())
evaluation, encoder = study.evaluation(), f"{arm}, seed {seed}"

# %% [markdown]
# ## The head
#
# One query a finding, one layer of cross-attention over the patch tokens of the encoder's last four blocks: version 1 is
# the public code, version 2 the paper. `local` does not see the last block. In a convolutional encoder that one has seen
# the whole image, its tokens tell the same everywhere, and a query need not look at the finding to know of it. Heads
# that notebook 9 kept are taken where they are current; others are fitted here, learning rates chosen on validation.

# %%
import pandas as pd

from chexstudy.evaluation.adaptation.recipes import plan_glori
from chexstudy.evaluation.localisation.pointing_game import fit_glori
from chexstudy.plots.adaptation import name_head

glori = plan_glori(glori_epochs, glori_batch_size, glori_learning_rates, glori_width, glori_standardise)
heads, features = fit_glori(evaluation, arm, seed, glori_heads, glori)
shown = next(iter(heads), ("", ""))  # a head and its variant
choices = [fitted.validation.assign(head=name_head(*head)) for head, fitted in heads.items()]
pd.concat(choices).round(4) if choices else "the cohort has no labels, no head is fitted"

# %% [markdown]
# ## Where findings are
#
# The phantom's true outlines, or the boxes that radiologists drew on NIH's images. The tuberculosis images have outlines
# of the lungs alone: there the question is only whether the head looks at lungs. A case is an image with a finding whose
# region is known.

# %%
from chexstudy.evaluation.localisation.pointing_game import read_study_regions

regions = read_study_regions(evaluation)

# %% [markdown]
# ## X1. Attention and confidences
#
# Chosen by rule, not by hand: findings in order of the size of their lesions, the smallest first (the rarest first where
# sizes are not known); of each, the first test image that has it and on which the head detects it. Detected means: above
# the score that 90 % of the validation images without the finding stay under (`specificity`).

# %%
from chexstudy.plots.attention import collect_cards

cards = collect_cards(evaluation, heads.get(shown), features, regions, examples, specificity)
figures.attention.show(study, cards, head=shown, encoder=encoder, specificity=specificity)

# %% [markdown]
# ## Does it look at the finding?
#
# Pointing game: is the maximum of the map inside the region? Mass: how much of the attention is? Chance for both is the
# region's share of the image. The harder rival is the head's own mean map over all images, which knows where a finding
# usually is and nothing of the image; `over_mean_map` is the paired difference to it.

# %%
from chexstudy.evaluation.localisation.pointing_game import measure_attention

attention = add_results(study.run, measure_attention(evaluation, heads, features, regions, arm, seed))
seen = attention[(attention.finding == "macro") & (attention.n > 0)]
seen = seen.set_index(["data_set", "metric", "head", "variant"])
seen[["value", "ci_low", "ci_high", "n"]].sort_index().round(3)

# %% [markdown]
# By test set, for the head of the examples:

# %%
from pathlib import PurePosixPath

from IPython.display import display

for name in regions:
    file = f"pointing_{PurePosixPath(name).name}"
    display(figures.pointing_test.show(study, attention, shown, name, name=file, encoder=encoder))

# %% [markdown]
# ## What must hold

# %%
measured = attention[attention.value.notna()]
assert measured.value[~measured.metric.str.contains("_over_")].between(0, 1).all()
assert (measured.n > 0).all(), "a value rests on no case"
for row in seen.loc[:].reset_index().query("metric == 'pointing_game_over_mean_map'").itertuples():
    verdict = (
        "more often" if row.ci_low > 0 else "less often" if row.ci_high < 0 else "no more often, as far as can be told,"
    )
    print(
        f"{row.data_set}, {name_head(row.head, row.variant)}: the finding is hit {verdict} than by the head's mean map ({row.value:+.3f})."
    )
