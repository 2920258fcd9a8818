"""Operations of two towers by the shapes they see, and of the contrastive loss."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from chexstudy.pretraining.engine.compute import FlopMeter
from chexstudy.pretraining.models.texts import PackedTexts, PaddedTexts, TextBatch

# Two rows are counted, because some backends treat a batch of one as a special case.
_ROWS = 2


class PairFlopMeter(FlopMeter):
    """Operations to encode images and texts by two towers, whose parameters a module owns."""

    def __init__(self, encode_image: Callable[..., Tensor], encode_text: Callable[..., Tensor], module: nn.Module):
        super().__init__(module)
        self._encode_image, self._encode_text = encode_image, encode_text

    def images(self, pixels: Tensor, backward: bool, size: int | None = None) -> float:
        """Operations to encode pixels ``(batch, 1, height, width)``, with the backward pass or without.

        ``size`` is the side in pixels at which the encoder looks; None for its own.
        """
        shape = tuple(pixels.shape[1:])
        sample, options = pixels[:1].expand(_ROWS, *shape), {} if size is None else {"size": size}
        key = ("image", shape, size, backward)
        return len(pixels) * self.count(key, lambda: self._encode_image(sample, **options), backward) / _ROWS

    def texts(self, batch: TextBatch, backward: bool) -> float:
        """Operations to encode the texts of a batch in its layout."""
        count = {PackedTexts: self._packed_texts, PaddedTexts: self._padded_texts}
        return sum(count[type(part)](part, backward) for part in batch.parts)

    def _padded_texts(self, part: PaddedTexts, backward: bool) -> float:
        length = part.input_ids.shape[1]
        ids, full = (values.expand(_ROWS, length) for values in (part.input_ids[:1], torch.ones_like(part.mask[:1])))
        key = ("text", length, backward)
        return len(part.input_ids) * self.count(key, lambda: self._encode_text(ids, full), backward) / _ROWS

    def _packed_texts(self, part: PackedTexts, backward: bool) -> float:
        """The cost of a text is quadratic in its length, and that of a row is the sum and a constant.

        So three lengths of one text, and one length of two texts, give the exact cost of any row.
        """

        def count(*lengths: int) -> int:
            ids = part.input_ids[:1].expand(sum(lengths))
            return self.count(
                ("packed", lengths, backward),
                lambda: self._encode_text.forward_packed(ids, torch.tensor(lengths)),
                backward,
            )

        one, two, three, constant = count(1), count(2), count(3), 2 * count(1) - count(1, 1)
        # Newton's form through the lengths 1, 2 and 3.
        ahead = part.lengths.double() - 1
        texts = (one - constant) + ahead * (two - one) + ahead * (ahead - 1) / 2 * (three - 2 * two + one)
        return float(texts.sum()) + constant

    @staticmethod
    def loss(pairs: int, dim: int) -> float:
        """Operations of the contrastive loss with its backward pass: three products of ``pairs x dim x pairs``."""
        return 6.0 * pairs * pairs * dim
