# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 14. Segment the anatomy
#
# **What it shows.** How well organs are outlined from what frozen encoders see of each place: by encoder, decoder and
# share of the labels, beside a small U-Net that is trained on the pixels end to end and the mean mask of the training
# images, which looks at no image. Failures are shown by rule.
#
# **What it costs.** About nine minutes for the default study on 2 cores, half of them the small U-Net; with a ViT-B at
# 378 pixels minutes a decoder on a GPU.

# %% tags=["parameters"]
study = "demo"  # name of the study, the folder under runs/
change = False  # give the study other values than it has, and tell what is stale from then on
seed = 0  # first seed of the arms and decoders, and seed of the resampling and of the choice of images
seeds = 5  # number of seeds
segment_encoders: list[str] = ["curated", "random_same_data", "full", "start", "untrained"]  # arms, others by name
decoders: list[str] = ["unet", "normalised_linear_4"]  # on encoders; also published_unet, linear, upernet
structures: list[str] = []  # outlined; none are the organs of which 20 training patients or more have outlines
segment_images = 128  # training images with outlines, at most, and half as many of validation; 0 is all
segment_test_images = 150  # images of each test set, at most; 0 is all
segment_epochs = 15  # epochs of a decoder (published: 100), the best on validation is kept
segment_steps = 150  # steps of a decoder at least, however few the images
segment_learning_rate = 1e-2  # of decoders; fewer epochs want larger steps than 1e-3
segment_augment = False  # turn, scale and shift training images; the encoder then looks at each anew in every step
segment_shares: list[float] = [0.01, 0.05, 0.1, 0.25]  # shares of the patients with outlines, beside all of them
share_encoders: list[str] = ["curated", "start"]  # encoders that are tried on shares
segment_tune: list[str] = []  # ways to tune the first encoder too: bias_only, low_rank (transformers only), full
examples = 4  # structures of which radiographs are shown
resamples = 1000  # bootstrap resamples of patients
device = "auto"  # auto, cpu or cuda
arms_at_once = 2  # encoders side by side; 1 on a GPU

# %%
from chexstudy.plots import figures
from chexstudy.results import add_results
from chexstudy.study import open_study

study = open_study("14_segment_anatomy", globals())

# %% [markdown]
# ## What is outlined
#
# Outlines teach and judge; boxes do neither. An image of which it is not known where a structure is takes no part in the
# loss of that structure, nor in its measures, and is counted as unknown. A finding that is labelled absent is known:
# nothing should be outlined.

# %%
from chexstudy.evaluation.segmentation.run import choose_images
from chexstudy.evaluation.segmentation.targets import read_targets

evaluation, outlined = choose_images(study.evaluation(), structures, segment_images, segment_test_images)
read_targets(evaluation, evaluation.cohort, outlined).count().assign(images=len(evaluation.cohort))

# %% [markdown]
# ## Train the decoders
#
# The encoder is frozen, so its last blocks are computed once. `unet` joins them from the last to the first, each step
# twice as large; `normalised_linear_4` is DINOv2's protocol, one linear layer a patch. Of an encoder whose patches are
# coarse, nothing finer than a patch comes through. Loss is soft Dice plus cross-entropy. The epoch is chosen on
# validation, the test sets are only scored, at the size of the original film. Baselines learn from the same images:
# `start` is the encoder that arms began from, `untrained` its architecture with random weights (the same where arms
# begin from nothing), and the small U-Net sees pixels.

# %%
from chexstudy.evaluation.segmentation.decoder_training import DecoderRecipe
from chexstudy.evaluation.segmentation.run import SegmentationPlan, segment_structures

recipe = DecoderRecipe(segment_epochs, segment_steps, learning_rate=segment_learning_rate, augment=segment_augment)
encoders, names = tuple(segment_encoders), tuple(decoders)
tried = tuple(segment_shares), tuple(share_encoders), tuple(segment_tune)
plan = SegmentationPlan(outlined, encoders, tuple(study.seeds), names, recipe, *tried)
segment_structures(evaluation, plan, workers=arms_at_once)

# %% [markdown]
# ## C6, X7. How well structures are outlined
#
# Dice and IoU are means over images at their original size; HD95 is the distance that 95 % of either boundary keeps
# from the other. A missed structure has Dice 0 and the image's diagonal as HD95: it leaves no mean.

# %%
from chexstudy.evaluation.segmentation.run import measure_segmentation

rows = add_results(study.run, measure_segmentation(evaluation, plan, workers=arms_at_once))
figures.segmentation.show(study, rows)

# %%
figures.segmentation_decoders.show(study, rows)

# %% [markdown]
# Differences of the mean over structures, paired by patient and seed, with p values corrected for their number. A
# frozen encoder that loses to the small U-Net has thrown away what boundaries need.

# %%
from chexstudy.evaluation.segmentation.run import tabulate_differences

tabulate_differences(rows)

# %% [markdown]
# ## How many labels it needs
#
# Each seed draws other patients, a smaller share is part of a larger one, and validation is thinned like training: its
# outlines are labels, too.

# %%
figures.segmentation_labels.show(study, rows)

# %% [markdown]
# ## What the outlines look like
#
# Of the structures that the first encoder outlines worst, by rule: the image with the median Dice, the one a tenth from
# the worst, the first on which it was missed, and the first without it on which something was outlined.

# %%
from chexstudy.plots.outlines import collect_outlines

cards = collect_outlines(evaluation, plan, examples)
figures.outlines.show(study, cards, encoder=f"{segment_encoders[0]}, seed {seed}", decoder=decoders[0])

# %% [markdown]
# ## What must hold

# %%
from chexstudy.results import OVER_SEEDS

values = rows[(rows.task == "segmentation") & rows.value.notna()]
assert values.value[values.metric.isin(["dice", "iou", "surface_dice", "missed"])].between(0, 1).all()
assert not (rows.ci_low > rows.ci_high).any()
assert not rows.data_set.str.endswith(("train", "validate")).any(), "a decoder was judged on what it was chosen on"
over = values[(values.seed == OVER_SEEDS) & (values.finding != "macro")]
shown = (
    over[over.metric.isin(["missed", "sensitivity"])].groupby(["data_set", "arm", "head", "setting", "finding"]).value
)
assert shown.sum().sub(1).abs().lt(1e-9).all(), "an image that shows a structure is neither found nor missed"
