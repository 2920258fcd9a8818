"""GLoRI: one query a finding looks at the patch tokens of a frozen encoder and answers for its finding alone.

Source: CheXFound (arXiv 2502.05142; IEEE TMI 44(12), 2025). `glori_v1` is the head of its public code, `glori_v2` the
one of the paper, which adds an adaptive temperature, pyramid patch merging and a skip connection of the CLS tokens. Of
those three the paper gives no code; what it leaves open is said at each option of `GloriHead`.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chexstudy.encoders.frozen_features import FeatureBatch
from chexstudy.errors import StudyError

PYRAMID = (8, 4, 2)
# Options of `GloriHead` by version: of the public code, and of the paper.
VERSIONS = {"glori_v1": {}, "glori_v2": {"cat_cls": True, "temperature": True, "pyramid": PYRAMID}}
# The temperature's hidden layer is this many times narrower than the head.
_NARROWER = 4


class GloriHead(nn.Module):
    """Class queries, one layer of cross-attention without self-attention, one linear read-out a finding.

    With X the tokens after a linear layer and ReLU, each query q goes through (post-norm)::

        q <- LN(q + dropout(q))
        q <- LN(q + dropout(attend(q, X, X)))
        q <- LN(q + dropout(W2 dropout(relu(W1 q))))

    and the logit of finding m is ``w_m . q_m + b_m``. Weights start as in the public code: queries N(0, 1), read-out
    Xavier-normal with bias 0, the rest as torch does. Dropout draws from torch's global generator, as everywhere in
    torch; whoever trains seeds it.

    Args:
        channels: how many channels of the tokens are read, the last ones: ``sum(widths)`` for all blocks,
            ``sum(widths[-2:])`` for the last two.
        skip: how many channels after those are not read: the width of the last block, to leave that block out.
        width: dimension of queries and projected tokens, shared by the heads of the attention.
        feedforward: hidden width of W1.
        dropout: on queries, attention weights and both layers of the feed-forward part.
        learnable_queries: train the queries; the public code leaves them as they were drawn.
        cat_cls: put the CLS tokens in front of each query's output before the read-out, as the public code can. It is
            also our reading of the paper's CLS skip connection.
        temperature: multiply the attention logits of each query by ``exp(tanh(f(mean of X)))``, between 1 / e and e.
            Our choice: f has one hidden ReLU layer of ``width / 4`` and one output a query, shared by the heads; its
            last layer starts at 0, so that every temperature starts at 1.
        pyramid: window sizes of pyramid patch merging, `PYRAMID` in the paper, which pools a 32 x 32 grid: patches
            averaged over windows, a linear layer to ``width / len(pyramid)`` for each size, every patch given its
            window's vector, sizes concatenated and added to the projected patches before the ReLU, which the paper
            leaves open. On grids that a window does not divide, the last window of a row or column is smaller; a window
            larger than the grid is the whole image.
        standardise: bring every channel to mean 0 and spread 1 first, by what `standardise_by` was told. Neither the
            code nor the paper has this: their ViT ends in a normalisation, which the stages of a ResNet lack.
    """

    needs_patches = True

    def __init__(
        self,
        channels: int,
        findings: int,
        *,
        width: int = 768,
        heads: int = 8,
        feedforward: int = 2048,
        dropout: float = 0.1,
        learnable_queries: bool = False,
        cat_cls: bool = False,
        temperature: bool = False,
        pyramid: tuple[int, ...] = (),
        standardise: bool = False,
        skip: int = 0,
        generator: torch.Generator,
    ):
        super().__init__()
        # The arguments but the generator, to build the head again.
        self.settings = {
            "channels": channels,
            "findings": findings,
            "width": width,
            "heads": heads,
            "feedforward": feedforward,
            "dropout": dropout,
            "learnable_queries": learnable_queries,
            "cat_cls": cat_cls,
            "temperature": temperature,
            "pyramid": tuple(pyramid),
            "standardise": standardise,
            "skip": skip,
        }
        self.channels, self.skip = channels, skip
        # Layers of torch draw from the global generator: it is borrowed, and given back as it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**62, (1,), generator=generator)))
            self.project = nn.Linear(channels, width)
            self.queries = nn.Parameter(torch.randn(findings, width), requires_grad=learnable_queries)
            self.attend = CrossAttention(width, heads, dropout)
            self.expand = nn.Linear(width, feedforward)
            self.contract = nn.Linear(feedforward, width)
            self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
            self.dropout = nn.Dropout(dropout)
            read = width + channels * cat_cls
            self.read_weight = nn.Parameter(nn.init.xavier_normal_(torch.empty(findings, read)))
            self.read_bias = nn.Parameter(torch.zeros(findings))
            self.pyramid = PatchPyramid(channels, width, tuple(pyramid)) if pyramid else None
            self.temperature = _make_temperature(width, findings) if temperature else None
        self.cat_cls = cat_cls
        self.standardise = standardise
        if standardise:
            self.register_buffer("centre", torch.zeros(channels))
            self.register_buffer("spread", torch.ones(channels))

    def standardise_by(self, mean: Tensor, spread: Tensor) -> None:
        """Say what the channels' mean and spread are, each ``(channels,)``, over the patches of training images.

        A channel that does not vary is left unscaled.
        """
        if not self.standardise or len(mean) < self.channels + self.skip:
            raise StudyError(f"only a head made with standardise takes statistics, of its {self.channels} channels.")
        spread = self._choose(spread)
        self.centre.copy_(self._choose(mean))
        self.spread.copy_(torch.where(spread > 0, spread, torch.ones_like(spread)))

    def forward(self, batch: FeatureBatch) -> Tensor:
        """Logits ``(batch, findings)``."""
        queries = self._look(batch)[0]
        inner = self.contract(self.dropout(F.relu(self.expand(queries))))
        queries = self.norms[2](queries + self.dropout(inner))
        width = queries.shape[-1]
        logits = torch.einsum("bmd,md->bm", queries, self.read_weight[:, -width:]) + self.read_bias
        if self.cat_cls:
            # The part of the read-out that reads the CLS tokens, without copying them for every finding.
            logits = logits + self._take(batch.cls) @ self.read_weight[:, :-width].T
        return logits

    @torch.no_grad()
    def attention(self, batch: FeatureBatch) -> Tensor:
        """Where each query looks: weights ``(batch, heads, findings, tokens)`` that sum to 1 over tokens.

        Always without dropout, whatever mode the head is in.
        """
        training = self.training
        self.eval()
        try:
            return self._look(batch)[1]
        finally:
            self.train(training)

    def _look(self, batch: FeatureBatch) -> tuple[Tensor, Tensor]:
        """Queries after attention ``(batch, findings, width)``, and its weights."""
        if batch.patches is None:
            raise StudyError("GLoRI looks at patch tokens and these features hold none: freeze them with patches.")
        tokens = self._embed_tokens(self._take(batch.patches))
        queries = self.queries.expand(len(tokens), -1, -1)
        queries = self.norms[0](queries + self.dropout(queries))
        temperature = None if self.temperature is None else self.temperature(tokens.mean(dim=1)).tanh().exp()
        seen, weights = self.attend(queries, tokens, temperature)
        return self.norms[1](queries + self.dropout(seen)), weights

    def _embed_tokens(self, patches: Tensor) -> Tensor:
        """X: ``(batch, tokens, width)``."""
        tokens = self.project(patches)
        if self.pyramid is not None:
            tokens = tokens + self.pyramid(patches)
        return F.relu(tokens)

    def _take(self, features: Tensor) -> Tensor:
        """The channels that are read, in the type of the weights (features are stored in half precision)."""
        if features.shape[-1] < self.channels + self.skip:
            raise StudyError(
                f"these features have {features.shape[-1]} channels and the head reads {self.channels}: "
                "use features of the encoder and the blocks it was made for."
            )
        features = self._choose(features).to(self.project.weight.dtype)
        return (features - self.centre) / self.spread if self.standardise else features

    def _choose(self, features: Tensor) -> Tensor:
        end = features.shape[-1] - self.skip
        return features[..., end - self.channels : end]


class CrossAttention(nn.Module):
    """Multi-head attention of queries to tokens: torch's `MultiheadAttention`, with a temperature for each query.

    Its parameters have the names and the starting values of torch's; ``dropout`` is on the attention weights.
    """

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(3 * width, width)))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.zeros_(self.out_proj.bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries: Tensor, tokens: Tensor, temperature: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Outputs ``(batch, queries, width)``, and weights ``(batch, heads, queries, tokens)`` before dropout.

        Of queries ``(batch, queries, width)`` and tokens ``(batch, tokens, width)``; the temperature ``(batch,
        queries)`` is what the attention logits are multiplied by.
        """
        width = queries.shape[-1]
        of_query, of_key, of_value = self.in_proj_weight.chunk(3)
        # The bias of the keys moves all logits of a query alike, which softmax does not see.
        query_bias, _, value_bias = self.in_proj_bias.chunk(3)
        asked = F.linear(queries, of_query, query_bias) * math.sqrt(self.heads / width)
        if temperature is not None:
            asked = asked * temperature[..., None]
        # q . (K x) is (K' q) . x, and the sum of a (V x) is V of the sum of a x: queries are fewer than tokens, so keys
        # and values of the tokens are never made.
        asked = torch.einsum("bmhd,hdw->bhmw", self._split_heads(asked, -1), self._split_heads(of_key, 0))
        weights = torch.softmax(asked.flatten(1, 2) @ tokens.transpose(1, 2), dim=-1)
        weights = weights.unflatten(1, (self.heads, -1))
        kept = self.dropout(weights)
        seen = (kept.flatten(1, 2) @ tokens).unflatten(1, (self.heads, -1))
        seen = torch.einsum("bhmw,hdw->bmhd", seen, self._split_heads(of_value, 0))
        # After dropout the weights of a query no longer sum to 1, and its bias counts as often as they do.
        seen = seen + kept.sum(dim=-1).transpose(1, 2)[..., None] * self._split_heads(value_bias, 0)
        return self.out_proj(seen.flatten(2)), weights

    def _split_heads(self, values: Tensor, dim: int) -> Tensor:
        return values.unflatten(dim, (self.heads, -1))


class PatchPyramid(nn.Module):
    """Coarse neighbours of each patch: averages over windows of several sizes, each with a linear layer of its own.

    The channels that come out are shared evenly by the sizes (of windows, in patches); the first take what is left.
    """

    def __init__(self, channels: int, width: int, sizes: tuple[int, ...]):
        super().__init__()
        self.sizes = sizes
        shares = [width // len(sizes) + (place < width % len(sizes)) for place in range(len(sizes))]
        self.project = nn.ModuleList(nn.Linear(channels, share) for share in shares)

    def forward(self, patches: Tensor) -> Tensor:
        """``(batch, grid * grid, channels)`` to ``(batch, grid * grid, width)``."""
        grid = square_side(patches.shape[1])
        image = patches.transpose(1, 2).unflatten(-1, (grid, grid))
        levels = []
        for size, project in zip(self.sizes, self.project, strict=True):
            window = min(size, grid)
            pooled = F.avg_pool2d(image, window, ceil_mode=True)
            # The linear layer comes before the windows are spread out again: the same numbers, fewer products.
            coarse = project(pooled.permute(0, 2, 3, 1))
            spread = coarse.repeat_interleave(window, dim=1)[:, :grid].repeat_interleave(window, dim=2)[:, :, :grid]
            levels.append(spread.flatten(1, 2))
        return torch.cat(levels, dim=-1)


def square_side(tokens: int) -> int:
    """The side of a square grid of so many tokens."""
    side = math.isqrt(tokens)
    if side * side != tokens or side == 0:
        raise StudyError(f"{tokens} patch tokens make no square grid: use square images and patches alone.")
    return side


def _make_temperature(width: int, findings: int) -> nn.Sequential:
    hidden = max(1, width // _NARROWER)
    last = nn.Linear(hidden, findings)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), last)
