# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 15. Write reports
#
# **What it shows.** Reports written from what frozen encoders see: copied from the nearest training image, composed of
# probed labels, or written by a language model that learns to read the encoder's patches. Each stands beside what the same
# generator writes of a blank image or of another patient's, and beside reports written without any image: a score
# that does not fall there was never earned by looking.
#
# **What it costs.** About fifteen minutes for the default study on 2 cores, most of it the language model; with a language
# model of billions of weights hours on a GPU, and a day at the published scale.

# %% tags=["parameters"]
study = "demo"  # name of the study, the folder under runs/
change = False  # give the study other values than it has, and tell what is stale from then on
seed = 0  # first seed of the arms, and seed of the resampling, of the choice of images and of shuffles
seeds = 5  # number of seeds
report_encoders: list[str] = ["curated", "random_same_data", "full"]  # arms, also start, untrained or a Hub id
generators: list[str] = ["nearest_image", "composition", "language_model"]  # also nearest_text, medoid_image or _text
controls: list[str] = ["mean_image", "zeros", "shuffled", "shuffled_alike", "no_indication"]  # shown in place
sections = "findings"  # text that is written and judged: findings, or findings+impression
strip_comparisons = False  # take sentences out that compare with an earlier study, which no image shows
report_images = 0  # images of training and of validation that reports are learnt from, at most; 0 is all
report_test_images = 200  # images of each test set that reports are written of, at most; 0 is all
language_model = "tiny"  # made here from the training reports; or a causal one, Hub id with @revision or folder
published_recipe = False  # the constants of LLaVA-Rad in place of those that suit small encoders
report_epochs = 0  # epochs of the language model's last stage; 0 is as the recipe has them
show_reports = False  # print texts of reports beside the examples, which this file and the figure then hold
examples = 4  # radiographs to show
resamples = 1000  # bootstrap resamples of patients
device = "auto"  # auto, cpu or cuda
arms_at_once = 2  # encoders side by side; 1 on a GPU

# %%
from chexstudy.evaluation.report_generation.cases import choose_cases
from chexstudy.plots import figures
from chexstudy.results import add_results
from chexstudy.study import open_study

study = open_study("15_write_reports", globals())
evaluation, left_out = choose_cases(
    study.evaluation(), sections, strip_comparisons, train_images=report_images, test_images=report_test_images
)
left_out if len(left_out) else "every image has a text to write, none is left out"

# %% [markdown]
# What there is to learn and to judge by: whether a report was written by a radiologist or by a template from labels, how
# many repeat another word for word (a nearest report can then be right to the letter), and how many sentences compare
# with an earlier study, which no image shows.

# %%
from chexstudy.evaluation.report_generation.cases import describe_cases

describe_cases(evaluation, sections).round(3)

# %% [markdown]
# ## Is the labeler right?
#
# Whether a report names the right findings is judged by a labeler of rules, so it is judged first: what it reads in the
# reference reports against the labels of the cohort. In the drawn cohort a report says all that its image holds, and a
# disagreement is the labeler's fault. In others it can be the report's: where reports were written from labels by
# templates (NIH, BRAX), agreement is that of the templates and says nothing of radiologists.

# %%
from chexstudy.evaluation.report_generation.label_agreement import measure_agreement

agreement = add_results(study.run, measure_agreement(evaluation))
shown = agreement[agreement.value.notna() & (agreement.metric != "evaluable_findings")]
shown.pivot(index=["data_set", "finding"], columns="metric", values="value").round(3)

# %% [markdown]
# ## Write
#
# The encoders stay frozen. Nearest reports are those of the most similar training image, never of the same patient. A
# composed report tells what a linear probe calls present, at thresholds chosen on validation, in the sentences of
# pseudo-reports. The language model learns to write from the training reports alone, then to read an encoder's
# patches through a projector, in the two stages of LLaVA-Rad; text is the likeliest token after token. Reports are kept
# in `evaluation/` and stay there.

# %%
from chexstudy.evaluation.report_generation.alignment import plan_language_model
from chexstudy.evaluation.report_generation.generators import GeneratorSettings
from chexstudy.evaluation.report_generation.run import Writing, write_reports

plan = plan_language_model(language_model, published_recipe, report_epochs)
settings = GeneratorSettings(sections, strip_comparisons, plan=plan)
writing = Writing(report_encoders, study.seeds, generators, controls, settings)
write_reports(evaluation, writing, workers=arms_at_once)

# %% [markdown]
# ## C7. What is written, and what is written without looking
#
# Every metric stands in the results table with its package, version and constants (`signature`). Text metrics reward
# the usual words, of which the last line tells most: a reference with one finding turned into its opposite keeps
# nearly all of them. F1 of findings is what a reader would ask for.

# %%
from chexstudy.evaluation.report_generation.run import measure_written

results = add_results(study.run, measure_written(evaluation, writing, workers=arms_at_once))
figures.report_generation.show(study, results)

# %% [markdown]
# By finding, on the first encoder, against what telling the finding in every report would get:

# %%
figures.report_findings.show(study, results, report_encoders[0])

# %% [markdown]
# Examples by rule: of one finding after the other, the rarest first, the first image whose reference tells it.

# %%
from chexstudy.plots.report_generation import collect_reports

cards = collect_reports(evaluation, writing, examples, show_reports)
figures.report_examples.show(study, cards, encoder=f"{report_encoders[0]}, seed {seed}")

# %% [markdown]
# ## Who reads the image?
#
# A generator reads it if its F1 of findings falls whenever it is shown something else, each time by a paired interval
# above zero. One that loses nothing knows which reports are usual, and its score is that of knowing.

# %%
from chexstudy.evaluation.report_generation.run import judge_reading

verdicts = judge_reading(results)
print(*verdicts, sep="\n")

# %% [markdown]
# ## Encoders against each other
#
# The first encoder minus each other, the same patients and seeds; `p` is corrected by Holm over all comparisons of a
# metric on a data set.

# %%
from chexstudy.plots.report_generation import tabulate_encoders

tabulate_encoders(results, report_encoders[1:]).round(3)

# %% [markdown]
# ## C8. Performance by pretraining pairs and parameters
#
# The study's encoders in all tasks it was measured on so far, by the pairs they were trained on; beside them published
# encoders, grey, as their sources give them: other test sets, other labels, not measured here.

# %%
from chexstudy.plots.scale import tabulate_scale
from chexstudy.results import read_results

scale = tabulate_scale(evaluation, report_encoders, study.seeds)
figures.performance_by_scale.show(study, read_results(study.run), scale)

# %% [markdown]
# ## What must hold

# %%
values = results[(results.task == "report_generation") & results.value.notna() & results.metric.str.endswith("f1")]
assert values.value.between(0, 1).all()
of_itself = values[(values["head"] == "itself") & values.group.str.startswith("report")]
assert (of_itself.value == 1).all(), "a reference is not right about itself"
read = [verdict for verdict in verdicts if "reads the image" in verdict]
print(f"{len(read)} of {len(verdicts)} generators on an encoder and a test set read the image.")
