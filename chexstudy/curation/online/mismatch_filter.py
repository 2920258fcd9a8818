"""The mismatch filter: pairs whose report rather belongs to another image are set aside before anything is chosen.

What lies far from every prototype is rare or wrong, so a rule that looks for the uncommon finds wrong pairs first. A
cosine of image and text has no scale of its own: some texts lie near every image, and what is near changes with the
encoder. Its rank has one: how many of the other reports of a super-batch fit the image worse, and how many of the
other images fit the report worse. The lower of both is the pair's score. Identical reports are one report, so that the
pairs that share it are no rivals of each other.

What a wrong pair would score is known without any label: each image is also ranked with another pair's report. That
tells whether the encoders can say anything at all, and where to cut: where matched and shuffled scores are best told
apart (Youden 1950, Cancer 3: 32). By Bayes' rule a pair at that score is as likely wrong as any pair of the set; those
below are more likely wrong, those above less. That needs no estimate of how many are wrong, and hardly thins healthy
patients, whose reports fit many images, by more than others.
"""

import re
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from chexstudy.statistics.delong import correlate_areas
from chexstudy.statistics.proportions import wilson_interval

# Encoders that were never aligned tell matched from shuffled pairs by chance of their directions: AUROC 0.45 to 0.55 in
# 120 random alignments of the upstream encoders; the upstream pair has 0.79.
LEAST_AREA = 0.6


@dataclass(frozen=True)
class FilterVerdict:
    """Whether matched pairs can be told from shuffled ones, and where the filter cuts."""

    area: float  # AUROC of matched against shuffled scores, with its 95 % interval, pairs being drawn
    ci_low: float
    ci_high: float
    cut: float  # pairs that score below are set aside; minus infinity where the filter abstains
    # Share of pairs that score as wrong ones do, a little too high since some sound pairs do as well (Storey 2002,
    # J. R. Stat. Soc. B 64: 479); NaN where the filter abstains.
    wrong_share: float
    wrong_low: float  # the ends of its 95 % interval, pairs being drawn
    wrong_high: float

    @property
    def abstains(self) -> bool:
        return self.cut == -np.inf

    def __str__(self) -> str:
        told = f"AUROC {self.area:.2f} [{self.ci_low:.2f}, {self.ci_high:.2f}]"
        told = "no two reports differ" if np.isnan(self.area) else told
        if self.abstains:
            return (
                "The mismatch filter abstains: matched pairs are not clearly told from shuffled ones "
                f"({told}, at least {LEAST_AREA:g} asked for), so no pair is set aside."
            )
        return f"Matched pairs are told from shuffled ones ({told}); at most {self.wrong_share:.1%} look mismatched."

    @staticmethod
    def read(note: str) -> tuple[float, float]:
        """AUROC and share of wrong pairs out of a note that begins with a verdict; NaN where it does not tell them."""
        area, share = re.search(r"\(AUROC (\S+)", note), re.search(r"at most (\S+)% look", note)
        return float(area[1]) if area else np.nan, float(share[1]) / 100 if share else np.nan


def rank_pairs(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of a super-batch of embeddings ``(batch, dim)``: of each pair, and of each image with another's report.

    From 0 (all others fit better) to 1 (none does), ties counting half, float64 ``(batch,)`` each. A half where there
    is no other report, NaN where the other report is identical to the image's own.
    """
    report = torch.unique(text, dim=0, return_inverse=True)[1]
    cosine = normalize(image.float(), dim=1) @ normalize(text.float(), dim=1).T
    own = torch.arange(len(report), device=cosine.device)
    scores = []
    for given in (own, own.roll(1)):
        value = cosine[own, given].unsqueeze(1)
        # The pair itself is no rival either, when its image is given another report.
        rival = (report[given].unsqueeze(1) != report) & (own.unsqueeze(1) != own)
        rivals = rival.sum(dim=1)
        ranks = [
            (((others < value) & rival).sum(dim=1) + 0.5 * ((others == value) & rival).sum(dim=1).double()) / rivals
            for others in (cosine, cosine.T[given])
        ]
        scores.append(torch.minimum(*ranks).nan_to_num(0.5))
    matched, shuffled = scores
    return matched, shuffled.masked_fill(report.roll(1) == report, torch.nan)


def judge_filter(matched: np.ndarray, shuffled: np.ndarray) -> FilterVerdict:
    """What the scores of `rank_pairs` ``(pairs,)`` tell: whether the filter may speak, and where it cuts."""
    known = np.flatnonzero(~np.isnan(shuffled))
    others = shuffled[known]
    labels, scores = np.repeat([1, 0], [len(matched), len(known)]), np.concatenate([matched, others])
    pairs = np.concatenate([np.arange(len(matched)), known])
    (area,), ((variance,),) = correlate_areas(labels, scores[:, None], pairs)
    reach = 1.96 * np.sqrt(variance)
    interval = float(area), float(area - reach), float(area + reach)
    # NaN, where there are too few pairs to tell, is not above either.
    if not area - reach > LEAST_AREA:
        return FilterVerdict(*interval, -np.inf, *[np.nan] * 3)
    cuts = np.unique(scores)
    below, others_below = (np.searchsorted(np.sort(one), cuts) / len(one) for one in (matched, others))
    lowest = np.quantile(others, 0.1)
    low = float(np.mean(matched <= lowest))
    shares = np.array([low, *wilson_interval(low, len(matched))]) / np.mean(others <= lowest)
    return FilterVerdict(*interval, float(cuts[np.argmax(others_below - below)]), *map(float, shares.clip(max=1)))
