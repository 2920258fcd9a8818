# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 13. Pretrain on images alone
#
# **What it shows.** An image encoder trained without reports or labels (DINO on crops, iBOT on masked patches, KoLeo;
# CheXFound): whether it trains or collapses, what its patches see, and what curation is worth to it. All images are
# held against random ones and against what the published bands, budgeted bands, hierarchical k-means and SemDeDup keep,
# at equal images and equal compute. Heads on the frozen encoder judge, beside the encoder before training.
#
# **What it costs.** About twenty minutes for the default study on 2 cores (7 arms, 1 seed, 64 pixels); the published
# ViT-L takes thousands of GPU hours in four stages of resolution.

# %% tags=["parameters"]
study = "demo"  # name of the study, the folder under runs/
change = False  # give the study other values than it has, and tell what is stale from then on
seed = 0  # first seed of the arms, and seed of the resampling
ssl_seeds = 1  # number of seeds
ssl_arms: list[str] = []  # arms trained on images alone, by_METHOD for a method of notebook 8; empty for all seven
ssl_encoder = "tiny-dinov2"  # tiny-dinov2, a DINOv2 or DINOv3 of the Hub, or a folder, to start from
ssl_image_size = 64  # side in pixels of a global crop
local_size = 32  # side in pixels of a local crop
ssl_batch_size = 64  # images a step
ssl_warm_up_epochs = 3  # epochs over all images before curation; 0 where a pretrained encoder is the start
ssl_epochs = 9  # epochs over the kept images after the one that curates
ssl_learning_rate = 1e-3  # peak learning rate of AdamW
ssl_constants: list[str] = []  # further constants: texts of name, equals sign and value
probes: list[str] = ["linear", "neighbours", "glori_v2"]  # heads that judge the frozen encoders
head_epochs = 10  # epochs of the linear probe over the labelled images (published: 10, in its scripts 100)
glori_epochs = 10  # epochs of GLoRI
glori_batch_size = 32  # images a step of GLoRI (published: 128); few labels want more steps
glori_learning_rates: list[float] = [1e-3, 3e-3]  # tried together, chosen on validation (published: 13, as the probe)
glori_width = 64  # dimension of GLoRI's queries, in heads of 16 (published: 768, in 8 heads of 96)
glori_standardise = True  # bring the channels of GLoRI's tokens to one scale (published: as they come from a ViT)
supervised_epochs = 6  # epochs in which the encoder is trained on the labels alone, to hold against; 0 for none
beside: list[str] = ["curated", "full"]  # contrastive arms of the study whose image encoders are held against
place_heads: list[str] = ["glori_v2", "glori_v1.middle"]  # heads compared by lesion size, two of four
small_lesions = 0.025  # a finding is small if its median lesion covers less of the image
data_by = "source"  # column of the cohort whose values are an arm's data each: source, or view in place of it
sides: list[int] = []  # sides in pixels at which an encoder looks, at most that of the stored images; empty for three
patch_side = 0  # side in pixels at which patches are looked at; 0 for that of the stored images
patch_images = 400  # test images whose patches are looked at
resamples = 1000  # bootstrap resamples of patients
device = "auto"  # auto, cpu or cuda
arms_at_once = 2  # arms trained side by side; 1 on a GPU

# %%
from chexstudy.experiments.self_supervised_arms import plan_self_supervision
from chexstudy.plots import figures
from chexstudy.pretraining.arms.definitions import choose_seeds
from chexstudy.study import open_study

study, seeds = open_study("13_pretrain_ssl", globals()), choose_seeds(seed, ssl_seeds)
constants = [f"image_encoder={ssl_encoder}", f"image_size={ssl_image_size}", f"local_size={local_size}"]
constants += [f"batch_size={ssl_batch_size}", f"micro_batch={ssl_batch_size}", f"learning_rate={ssl_learning_rate}"]
constants += [
    f"warm_up_epochs={ssl_warm_up_epochs}",
    f"subset_epochs={ssl_epochs}",
    "weight_decay=0.04",
    *ssl_constants,
]
config = plan_self_supervision(study.config, constants)

# %% [markdown]
# ## Train
#
# The arms are those of the study under another objective, trained by the same engine in folders of their own: a run that
# was killed goes on, finished ones are skipped, and contrastive arms stay as they are. The data are the cohort of
# notebook 1 (X9), without its reports. The published bands choose while training, by the teacher's view of each image;
# the other methods choose once, by what the teacher sees at the end of the warm-up that they all start with.

# %%
from chexstudy.experiments.self_supervised_arms import train_self_supervised
from chexstudy.pretraining.arms.definitions import read_costs, tabulate_costs

arms = train_self_supervised(study.run, ssl_arms, seeds, config, device, arms_at_once)
costs = read_costs(study.run, arms, seeds)
tabulate_costs(costs)

# %% [markdown]
# ## Does it train, or collapse?
#
# The loss does not say: that of a model for which all images are alike is low. So the targets' entropies, the prototypes
# in use and the rank of what the teacher sees are watched, and judged in words.

# %%
from chexstudy.experiments.self_supervised_arms import judge_arms, read_histories

histories = read_histories(study.run, arms, seed)
figures.self_supervised_training.show(study, histories, judge_arms(histories, config), seed=seed)

# %% [markdown]
# ## X2, X3. Curated against random against all
#
# Heads on the frozen encoders: the published linear probe, nearest neighbours, and GLoRI on the patches. All choices are
# made on validation, so that only test sets are reported. The encoder before training is the baseline that any number
# must be held against; what labels alone make of the same start, and what reports made of the study's own encoders,
# stand beside. Equal images are nearly equal compute here, for a score takes one view and a step takes ten or so.

# %%
from chexstudy.evaluation.adaptation.recipes import plan_glori, plan_heads
from chexstudy.evaluation.adaptation.training import Recipe
from chexstudy.experiments.self_supervised_arms import judge_encoders, plan_supervision
from chexstudy.results import add_results

glori = plan_glori(glori_epochs, glori_batch_size, glori_learning_rates, glori_width, glori_standardise)
heads, supervised = plan_heads(probes, Recipe(epochs=head_epochs), glori), plan_supervision(supervised_epochs)
others = [arm for arm in beside if all(study.run.has(f"pretraining/{arm}/seed{one}/compute.json") for one in seeds)]
evaluation = study.evaluation()
judged = judge_encoders(evaluation, [*arms, *others], seeds, heads, supervised, arms_at_once)
results = add_results(study.run, judged)

# %%
from chexstudy.plots.self_supervision import tabulate_encoders

tabulate_encoders(results)

# %%
figures.self_supervised_arms.show(study, results)

# %% [markdown]
# ## Small lesions
#
# A ViT's tokens are local until its last blocks, unlike those of the study's own convolutional encoder (notebook 10).
# Here "GLoRI beats the probe on small lesions" can be true: heads that look at places minus the published linear probe,
# and minus logistic regression on [CLS] and mean patch; and how much of their attention lies on the finding, by lesion
# size. On the encoder before training and on the first trained one.

# %%
from chexstudy.experiments.small_lesions import compare_by_lesion_size, plan_place_heads

place_plans, recipe = plan_place_heads(place_heads, glori), Recipe(epochs=head_epochs)
by_size = add_results(study.run, compare_by_lesion_size(evaluation, arms[:2], seed, place_plans, recipe, small_lesions))
figures.self_supervised_lesions.show(study, by_size, small=small_lesions)

# %%
main = by_size[by_size.data_set == evaluation.main_test_set()]
main = main.set_index(["task", "metric", "finding", "arm", "head", "setting", "reference"])
main[["value", "ci_low", "ci_high", "n"]].sort_index().astype(float).round(3)

# %% [markdown]
# ## X11. Pretraining data
#
# One source against all, at equal images and equal compute: an arm sees the training images of one source alone,
# another as many drawn from all, as many as the smallest source has. Heads are fitted to the labels of all sources and
# judged on the test of each, so that every encoder is measured on a source of its own and on others. A cohort of one
# source has nothing to compare.

# %%
from chexstudy.experiments.self_supervised_arms import POOLED, SOURCE, SOURCE_DIFFERENCE, train_by_source

by_source = train_by_source(study.run, study.cohort, data_by, seeds, config, device, arms_at_once)
tasks = (SOURCE, SOURCE_DIFFERENCE)
sourced = judge_encoders(evaluation, by_source, seeds, heads, (), arms_at_once, reference=POOLED, tasks=tasks)
figures.self_supervised_sources.show(study, add_results(study.run, sourced))

# %% [markdown]
# ## X10. Resolution
#
# The first trained encoder and the one before training look at images of several sizes. As published, every size is a
# training of its own, begun with what the one before left; here one encoder is only looked through.

# %%
from chexstudy.experiments.self_supervised_arms import compare_sides

at_sides = compare_sides(evaluation, arms[:2], seeds, sides, Recipe(epochs=head_epochs))
figures.self_supervised_resolution.show(study, add_results(study.run, at_sides), trained_at=ssl_image_size)

# %% [markdown]
# ## What its patches see
#
# Every encoder looks at test radiographs at the size they are stored in, and the first three components of its patches
# over all of them become colours: organs of one colour, in image after image, are what the field expects of DINOv2.

# %%
from chexstudy.evaluation.encoders import load_encoder
from chexstudy.experiments.patch_similarity import see_patches

tests = evaluation.test_sets()[evaluation.main_test_set()].head(patch_images)
encoders = {arm: load_encoder(study.run, arm, seed) for arm in [arms[0], *arms[1:][:2]]}
side = patch_side or study.pixels.size
seen = {arm: see_patches(one, study.pixels, tests.image_id, side, study.device) for arm, one in encoders.items()}
figures.patch_maps.show(study, seen, study.pixels.read(tests.image_id[:8]))

# %% [markdown]
# Nearest neighbours of a patch: where the place of findings is known, the patches most like one that lies on a finding.

# %%
from chexstudy.cohort.annotations import read_regions
from chexstudy.experiments.patch_similarity import choose_queries

regions = read_regions(study.run, tests, study.findings, study.pixels.size, study.pixels.fit)
queries = choose_queries(regions, tests.image_id, seen[arms[0]].grid)
figures.patch_neighbours.show(study, seen, regions, queries, study.pixels.read(tests.image_id))

# %% [markdown]
# ## What must hold

# %%
kept = costs[costs.arm.str.startswith(("curated", "random_same_data", "by_"))]
images = kept.groupby("seed").pairs_trained.agg(lambda counts: counts.max() / counts.min() - 1)
assert (images < 0.02).all(), "not the same number of images"
assert not results.data_set.str.endswith(("train", "validate")).any(), "a head was measured on what it was chosen on"
