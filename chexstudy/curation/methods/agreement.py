"""Image-text agreement: keep the pairs whose report fits its radiograph."""

import numpy as np
import torch

from chexstudy.curation.choice import Choice, choose_highest
from chexstudy.curation.methods.blocks import iterate_blocks, read_rows


def choose_by_agreement(
    features: np.ndarray, budget: int, generator: torch.Generator, *, image: np.ndarray, text: np.ndarray
) -> Choice:
    """Keep the pairs of the highest cosine between image and text embedding.

    Sources: CLIPScore, Hessel et al. 2021 (arXiv 2104.08718); as a filter of training pairs, LAION-400M, Schuhmann et
    al. 2021 (arXiv 2111.02114) and DataComp, Gadre et al. 2023 (arXiv 2304.14108). CLIPScore rescales the cosine and
    cuts it at zero, which changes no order above zero; we do neither. LAION cuts at a fixed cosine; here the budget
    sets the cut. Equal cosines are taken in row order. Subsets are nested.

    Args:
        features: ``(n, dim)``, not used.
        budget: pairs to choose.
        generator: not used.
        image: image embeddings ``(n, width)``, not zero; brought to unit norm here.
        text: text embeddings ``(n, width)``, likewise.
    """
    agreement = np.empty(len(image))
    for rows, block in iterate_blocks(image):
        agreement[rows] = torch.cosine_similarity(block, read_rows(text, rows), dim=1).numpy()
    return choose_highest(agreement, budget)
