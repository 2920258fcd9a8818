"""Texts laid out for the encoder: every layout holds the same tokens, and all embed alike, forward and backward."""

from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from chexstudy.encoders.build import build_text_encoder
from chexstudy.encoders.spec import EncoderSpec
from chexstudy.encoders.tokenizer import train_wordpiece
from chexstudy.errors import StudyError
from chexstudy.pretraining.models.texts import PackedTexts, TokenisedTexts, cut_into_buckets, encode_texts

CPU = torch.device("cpu")
LAYOUTS = ("padded", "buckets", "packed")
WORDS = ("effusion", "opacity", "clear", "left", "heart", "mild", "no")


def write_reports(count=40, seed=0):
    rng = np.random.default_rng(seed)
    lengths = np.minimum(rng.geometric(0.08, count), 100)
    return [" ".join(rng.choice(WORDS, length)) for length in lengths]


def draw_tokens(lengths, padding=0, longest=None):
    """Token ids that tell the text and the place: 1000 * text + place + 1."""
    longest = longest or max(lengths)
    mask = torch.tensor([[int(place < length) for place in range(longest)] for length in lengths])
    ids = 1000 * torch.arange(len(lengths)).unsqueeze(1) + torch.arange(longest) + 1
    return torch.where(mask.bool(), ids, padding), mask


class Recorder:
    """Embeds a text as the list of its tokens, whatever the layout, and counts calls."""

    def __init__(self, width):
        self.width, self.calls = width, 0

    def _embed(self, texts):
        self.calls += 1
        return torch.stack([torch.nn.functional.pad(text, (0, self.width - len(text))) for text in texts]).float()

    def __call__(self, input_ids, mask):
        return self._embed([row[keep.bool()] for row, keep in zip(input_ids, mask, strict=True)])

    def forward_packed(self, input_ids, lengths):
        return self._embed(input_ids.split(lengths.tolist()))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_holds_the_tokens_of_every_text_in_the_order_asked_for(layout):
    lengths = [3, 17, 1, 9, 40, 9, 33, 2]
    input_ids, mask = draw_tokens(lengths)
    rows = np.array([6, 0, 4, 4, 2, 7])
    batch = TokenisedTexts(input_ids, mask).batch(rows, CPU, layout)
    embedded = encode_texts(Recorder(40), batch)
    assert torch.equal(embedded, input_ids[rows].float())
    parts = {"padded": 6 * 40, "packed": 33 + 3 + 40 + 40 + 1 + 2}
    computed = sum(part.input_ids.numel() for part in batch.parts)
    assert computed == parts.get(layout, computed)


def test_the_padding_is_the_tokenizers_own():
    input_ids, mask = draw_tokens([3, 12], padding=7)
    part = TokenisedTexts(input_ids, mask).batch(np.array([0, 1]), CPU, "padded").parts[0]
    assert torch.equal(part.input_ids, input_ids)
    assert torch.equal(part.mask, mask)


def test_packed_texts_of_equal_length_stand_side_by_side():
    texts = TokenisedTexts(*draw_tokens([5, 3, 5, 4, 3]))
    (part,) = texts.batch(np.arange(5), CPU, "packed").parts
    assert isinstance(part, PackedTexts)
    assert part.lengths.tolist() == [3, 3, 4, 5, 5]
    assert part.input_ids.tolist()[:6] == [1001, 1002, 1003, 4001, 4002, 4003]


def cheapest_by_trial(lengths, longest, most=8, call=128, step=8):
    """The smallest cost over all ways to cut the sorted texts into groups."""
    costs = []
    for groups in range(1, min(most, len(lengths)) + 1):
        for cuts in combinations(range(1, len(lengths)), groups - 1):
            bounds = [0, *cuts, len(lengths)]
            costs.append(
                sum(
                    (last - first) * min(-(-lengths[last - 1] // step) * step, longest) + call
                    for first, last in pairwise(bounds)
                )
            )
    return min(costs)


@pytest.mark.parametrize("seed", range(8))
def test_buckets_are_the_cheapest_there_are(seed):
    rng = np.random.default_rng(seed)
    # Scaled up so that one more group can pay.
    lengths = np.sort(rng.integers(1, 2000, rng.integers(1, 12)))
    longest = int(lengths[-1])
    groups = cut_into_buckets(lengths, longest)
    assert [span.start for span, _ in groups] == [0, *[span.stop for span, _ in groups[:-1]]]
    assert groups[-1][0].stop == len(lengths)
    assert all(lengths[span].max() <= length <= longest for span, length in groups)
    cost = sum((span.stop - span.start) * length + 128 for span, length in groups)
    assert cost == cheapest_by_trial(lengths.tolist(), longest)


def test_there_are_at_most_eight_buckets_and_one_where_lengths_are_alike():
    assert len(cut_into_buckets(np.repeat(np.arange(8, 264, 8), 500), 256)) == 8
    assert cut_into_buckets(np.full(64, 57), 128) == [(slice(0, 64), 64)]
    assert cut_into_buckets(np.array([3, 5, 7]), 7) == [(slice(0, 3), 7)]


def test_buckets_compute_little_padding_where_lengths_have_a_long_tail():
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.gamma(2.5, 23, 512), 4, 256).astype(int)
    input_ids = torch.ones(512, 256, dtype=torch.long)
    texts = TokenisedTexts(input_ids, torch.arange(256) < torch.from_numpy(lengths).unsqueeze(1))
    laid_out = (texts.batch(np.arange(512), CPU, layout).parts for layout in ("buckets", "padded"))
    buckets, padded = (sum(part.input_ids.numel() for part in parts) for parts in laid_out)
    assert buckets < 1.2 * lengths.sum() < padded / 3


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A BERT as the Hub has it, with random weights."""
    folder = tmp_path_factory.mktemp("bert")
    tokenizer = train_wordpiece(write_reports(), min_frequency=1)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class Tower:
    def __init__(self, encoder):
        self.forward_packed, self._encoder = encoder.forward_packed, encoder

    def __call__(self, input_ids, mask):
        return self._encoder(input_ids, mask)


@pytest.mark.parametrize(("dtype", "relative"), [(torch.float32, 1e-6), (torch.float64, 1e-13)])
@pytest.mark.parametrize("pooling", ["last", "mean", "pooler"])
@pytest.mark.parametrize("name", ["tiny-bert", "bert"])
def test_all_layouts_embed_alike_forward_and_backward(bert, name, pooling, dtype, relative):
    reports = write_reports()
    folder = str(bert) if name == "bert" else name
    encoder = build_text_encoder(EncoderSpec(folder, pooling=pooling, max_tokens=64), reports).to(dtype)
    tokens = encoder.tokenize(reports)
    texts = TokenisedTexts(tokens["input_ids"], tokens["attention_mask"])
    rows = np.random.default_rng(1).permutation(len(texts))[:24]
    results = {}
    for layout in LAYOUTS:
        batch = texts.batch(rows, CPU, layout)
        encoder.zero_grad()
        embedded = encode_texts(Tower(encoder), batch)
        embedded.square().sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None])
        results[layout] = embedded.detach().double(), gradient.double()
    assert len(texts.batch(rows, CPU, "buckets").parts) > 1
    for layout in ("buckets", "packed"):
        for value, expected in zip(results[layout], results["padded"], strict=True):
            assert torch.linalg.vector_norm(value - expected) <= relative * torch.linalg.vector_norm(expected)


def test_texts_that_cannot_be_laid_out_are_refused():
    input_ids, mask = draw_tokens([3, 2])
    with pytest.raises(StudyError, match="text_layout must be one of buckets, packed, padded, not 'sorted'"):
        TokenisedTexts(input_ids, mask).batch(np.array([0]), CPU, "sorted")
    for wrong in (mask.flip(1), torch.zeros_like(mask), mask[:, :2]):
        with pytest.raises(StudyError, match="at least one token each and their padding on the right"):
            TokenisedTexts(input_ids, wrong)
