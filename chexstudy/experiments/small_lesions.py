"""Whether a head that looks at places pays where lesions are small: against probes by lesion size, and where it looks.

The last tokens of a convolutional encoder have seen the whole image, those of a ViT's middle blocks less of it.
Version 2 of GLoRI sees the last four blocks. Of version 1 one variant sees the second of these alone, one the last
alone; with queries that are trained it is attention pooling, one query a finding.
"""

from collections.abc import Sequence

import pandas as pd

from chexstudy.cohort.annotations import list_lesion_sizes
from chexstudy.errors import StudyError
from chexstudy.evaluation.adaptation.recipes import GloriConstants, HeadPlan
from chexstudy.evaluation.adaptation.run import SMALL_LESIONS, adapt_arm, compare_adaptation, load_head
from chexstudy.evaluation.adaptation.training import Recipe
from chexstudy.evaluation.context import EvaluatedModel, Evaluation
from chexstudy.evaluation.localisation.pointing_game import measure_attention, read_study_regions
from chexstudy.evaluation.scores import MACRO
from chexstudy.pretraining.arms.definitions import split_name
from chexstudy.results import COLUMNS, join_rows

GAIN, ATTENTION = "self_supervision_gain", "self_supervision_attention"
LARGER_LESIONS = "larger lesions"
# Options of version 1 by variant; an encoder keeps the tokens of four blocks.
VARIANTS = {
    "middle": {"blocks": 3, "skip_blocks": 2},
    "last": {"blocks": 1},
    "learnable_queries": {"learnable_queries": True},
}


def plan_place_heads(names: Sequence[str], glori: GloriConstants) -> list[HeadPlan]:
    """``glori_v2`` and variants of version 1, ``glori_v1.middle``, by name."""
    known = [HeadPlan("glori_v2", options=glori.options, recipe=glori.recipe)]
    known += [
        HeadPlan("glori_v1", name, {**glori.options, **change}, glori.recipe) for name, change in VARIANTS.items()
    ]
    plans = {plan.name: plan for plan in known}
    for name in names:
        if name not in plans:
            raise StudyError(f"there is no head {name!r} to compare by lesion size: use {', '.join(plans)}.")
    return [plans[name] for name in names]


def compare_by_lesion_size(
    evaluation: Evaluation, arms: Sequence[str], seed: int, heads: Sequence[HeadPlan], recipe: Recipe, small: float
) -> pd.DataFrame:
    """Heads that look at places minus probes, and where they look, over findings of small and of larger lesions.

    A finding is ``small`` if its median lesion covers less of the image. The ``recipe`` is the linear probe's; logistic
    regression, on [CLS] and mean patch, is held against, too. Gives rows of the results table under two tasks, in
    ``setting`` the head's variant; none where no lesion's size is known.
    """
    if not evaluation.findings:
        return pd.DataFrame(columns=COLUMNS)
    tests, store, tables = pd.concat(evaluation.test_sets().values()), evaluation.store, []
    sizes = list_lesion_sizes(evaluation.run, tests, evaluation.findings, store.size, store.fit)
    groups = {SMALL_LESIONS: list(sizes.index[sizes < small]), LARGER_LESIONS: list(sizes.index[sizes >= small])}
    probes = [HeadPlan("linear", recipe=recipe), HeadPlan("logistic", recipe=recipe)]
    regions = read_study_regions(evaluation) if len(sizes) else {}
    for arm in arms if len(sizes) else ():
        adapt_arm(evaluation, arm, seed, [*heads, *probes])
        fitted = {(plan.kind, plan.variant): load_head(evaluation.run, arm, seed, plan.name) for plan in heads}
        features = EvaluatedModel(evaluation, arm, seed).freeze(patches=True)
        pairs = [((arm, a), (arm, b)) for a in heads for b in probes]
        for group, findings in groups.items():
            if not findings:
                continue
            gains = compare_adaptation(evaluation, [seed], pairs, findings)
            seen = measure_attention(evaluation, fitted, features, regions, arm, seed, findings)
            own = (
                gains[gains.finding == SMALL_LESIONS].assign(task=GAIN),
                seen[seen.finding == MACRO].assign(task=ATTENTION),
            )
            name, variant = split_name(arm)
            tables += [one.assign(finding=group, setting=one.variant, arm=name, variant=variant) for one in own]
    return join_rows(pd.DataFrame(columns=COLUMNS), *tables)
