from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from chexstudy.errors import StudyError
from chexstudy.evaluation.adaptation.glori import VERSIONS, CrossAttention, GloriHead, PatchPyramid

SMALL = {"width": 24, "heads": 4, "feedforward": 32}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def make_batch(images=3, grid=4, channels=10, dtype=torch.float32, seed=1):
    patches = torch.randn(images, grid * grid, channels, generator=seeded(seed), dtype=dtype)
    cls = torch.randn(images, channels, generator=seeded(seed + 1), dtype=dtype)
    return SimpleNamespace(pooled=cls, cls=cls, mean=patches.mean(dim=1), patches=patches)


def make_small(version="glori_v1", **options):
    return GloriHead(10, 5, generator=seeded(), **(SMALL | VERSIONS[version] | options)).double().eval()


def count(parameters):
    return sum(parameter.numel() for parameter in parameters)


def test_parameter_counts_are_the_published_ones():
    head = GloriHead(4096, 40, generator=seeded())
    assert count(p for p in head.parameters() if p.requires_grad) == 8_692_776
    assert count(p for p in head.parameters() if not p.requires_grad) == 30_720
    with_cls = GloriHead(4096, 40, cat_cls=True, generator=seeded())
    assert count(p for p in with_cls.parameters() if p.requires_grad) == 8_856_616
    learnable = GloriHead(4096, 40, learnable_queries=True, generator=seeded())
    assert count(p for p in learnable.parameters() if p.requires_grad) == 8_692_776 + 30_720


def test_starting_values_are_those_of_the_public_code():
    head = GloriHead(512, 40, generator=seeded())
    assert head.queries.std().item() == pytest.approx(1, abs=0.02)
    assert head.read_weight.std().item() == pytest.approx((2 / (768 + 40)) ** 0.5, rel=0.03)
    assert not head.read_bias.any()
    assert not head.attend.in_proj_bias.any()
    bound = (6 / (4 * 768)) ** 0.5
    assert bound * 0.99 < head.attend.in_proj_weight.abs().max() <= bound


@pytest.mark.parametrize("needs_dropout", [False, True])
def test_attention_equals_that_of_torch_forwards_and_backwards(needs_dropout):
    dropout = 0.3 if needs_dropout else 0.0
    ours = CrossAttention(24, 4, dropout).double()
    reference = nn.MultiheadAttention(24, 4, dropout=dropout, batch_first=True, dtype=torch.float64)
    reference.load_state_dict(ours.state_dict())
    results = []
    for module in (ours, reference):
        queries = torch.randn(3, 5, 24, generator=seeded(1), dtype=torch.float64).requires_grad_()
        tokens = torch.randn(3, 16, 24, generator=seeded(2), dtype=torch.float64).requires_grad_()
        module.zero_grad()
        # The same draws of dropout reach both, because both drop entries of (batch, heads, queries, tokens) in order.
        with torch.random.fork_rng():
            torch.manual_seed(3)
            if module is ours:
                output, weights = module(queries, tokens)
            else:
                output, weights = module(queries, tokens, tokens, need_weights=True, average_attn_weights=False)
        (output**2).sum().backward()
        gradients = [parameter.grad for _, parameter in sorted(module.named_parameters())]
        results.append((output, weights, [queries.grad, tokens.grad, *gradients]))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=1e-12)
    if not needs_dropout:
        torch.testing.assert_close(results[0][1], results[1][1], rtol=0, atol=1e-12)
    for mine, theirs in zip(results[0][2], results[1][2], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("cat_cls", [False, True])
def test_the_head_equals_the_published_layers_written_with_torch_modules(cat_cls):
    head, batch = make_small(cat_cls=cat_cls), make_batch(dtype=torch.float64)
    attention = nn.MultiheadAttention(24, 4, batch_first=True, dtype=torch.float64)
    attention.load_state_dict(head.attend.state_dict())
    tokens = torch.relu(head.project(batch.patches))
    queries = head.queries[None].repeat(3, 1, 1)
    queries = head.norms[0](queries + queries)
    queries = head.norms[1](queries + attention(queries, tokens, tokens)[0])
    queries = head.norms[2](queries + head.contract(torch.relu(head.expand(queries))))
    if cat_cls:
        queries = torch.cat([batch.cls[:, None].expand(-1, 5, -1), queries], dim=-1)
    by_finding = [queries[:, one] @ head.read_weight[one] + head.read_bias[one] for one in range(5)]
    torch.testing.assert_close(head(batch), torch.stack(by_finding, dim=1), rtol=0, atol=1e-12)


def test_a_finding_reads_its_own_query_alone():
    head, batch = make_small(learnable_queries=True), make_batch(dtype=torch.float64)
    before, looked = head(batch), head.attention(batch)
    torch.testing.assert_close(looked.sum(dim=-1), torch.ones(3, 4, 5, dtype=torch.float64))
    with torch.no_grad():
        head.queries[2].neg_()
    changed = (head(batch) - before).abs() > 1e-9
    assert changed.any(dim=0).tolist() == [False, False, True, False, False]
    moved = (head.attention(batch) != looked).any(dim=-1).any(dim=1).any(dim=0)
    assert moved.tolist() == [False, False, True, False, False]


def test_temperatures_start_at_one_and_stay_between_one_over_e_and_e():
    batch = make_batch(dtype=torch.float64)
    head, plain = make_small(temperature=True), make_small()
    head.load_state_dict(plain.state_dict(), strict=False)
    torch.testing.assert_close(head(batch), plain(batch))
    with torch.no_grad():
        head.temperature[-1].bias.copy_(torch.tensor([-50.0, 0, 0, 0, 50]))
    queries = plain.norms[0](plain.queries * 2)
    asked, keys = (
        F.linear(x, plain.attend.in_proj_weight[rows]).unflatten(-1, (4, 6))
        for x, rows in ((queries, slice(24)), (plain.project(batch.patches).relu(), slice(24, 48)))
    )
    logits = torch.einsum("mhd,bnhd->bhmn", asked, keys) / 6**0.5
    factor = torch.tensor([-1.0, 0, 0, 0, 1], dtype=torch.float64).exp()
    torch.testing.assert_close(head.attention(batch), (logits * factor[:, None]).softmax(-1), rtol=0, atol=1e-12)


def test_the_pyramid_gives_each_patch_the_mean_of_its_window_whether_it_divides_the_grid_or_not():
    pyramid = PatchPyramid(1, 3, (8, 4, 2))
    for layer in pyramid.project:
        nn.init.ones_(layer.weight)
        nn.init.zeros_(layer.bias)
    whole = pyramid(torch.arange(16.0).reshape(1, 16, 1))[0].reshape(4, 4, 3)
    assert whole[..., 1].unique().tolist() == [7.5]
    assert whole[::3, :, 2].tolist() == [[2.5, 2.5, 4.5, 4.5], [10.5, 10.5, 12.5, 12.5]]
    odd = pyramid(torch.arange(9.0).reshape(1, 9, 1))[0].reshape(3, 3, 3)
    assert odd[..., 0].unique().tolist() == [4.0]
    # Windows of two on a side of three: {0, 1, 3, 4}, {2, 5}, {6, 7} and {8}.
    assert odd[..., 2].tolist() == [[2, 2, 3.5], [2, 2, 3.5], [6.5, 6.5, 8]]
    # What is left over of the width goes to the first sizes.
    assert [layer.out_features for layer in PatchPyramid(10, 128, (8, 4, 2)).project] == [43, 43, 42]


def test_the_second_version_has_gradients_everywhere():
    head = make_small("glori_v2")
    assert (head.cat_cls, head.settings["temperature"], head.settings["pyramid"]) == (True, True, (8, 4, 2))
    nn.init.normal_(head.temperature[-1].weight, generator=seeded(3))
    (head(make_batch(dtype=torch.float64)) ** 2).sum().backward()
    without = {name for name, one in head.named_parameters() if one.grad is None or not one.grad.any()}
    assert without == {"queries"}


def test_the_same_generator_gives_the_same_head_and_leaves_the_global_one_alone():
    state = torch.get_rng_state()
    first, second, other = (
        GloriHead(10, 5, generator=seeded(seed), **SMALL, **VERSIONS["glori_v2"]) for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), state)
    for name, one in first.state_dict().items():
        assert torch.equal(one, second.state_dict()[name])
    assert not torch.equal(first.queries, other.queries)
    again = GloriHead(**first.settings, generator=seeded(9))
    again.load_state_dict(first.state_dict())
    batch = make_batch()
    assert torch.equal(again.eval()(batch), first.eval()(batch))


def test_fewer_channels_read_the_last_blocks():
    batch = make_batch(dtype=torch.float64)
    head = GloriHead(6, 5, cat_cls=True, generator=seeded(), **SMALL).double().eval()
    before = head(batch)
    batch.patches[..., :4], batch.cls[:, :4] = 0, 0
    assert torch.equal(head(batch), before)
    batch.patches[..., 4] = 0
    assert not torch.equal(head(batch), before)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_standardised_head_does_not_see_the_scale_of_channels(version):
    head, batch = make_small(version, standardise=True), make_batch(dtype=torch.float64)
    plain = head(batch)
    scale, shift = torch.linspace(0.01, 100, 10).double(), torch.linspace(-5, 5, 10).double()
    head.standardise_by(shift, scale)
    moved = SimpleNamespace(
        pooled=batch.pooled, cls=batch.cls * scale + shift, mean=batch.mean, patches=batch.patches * scale + shift
    )
    torch.testing.assert_close(head(moved), plain)
    same = make_small(version, standardise=True)
    same.load_state_dict(head.state_dict())
    torch.testing.assert_close(same(moved), plain)
    constant = scale.clone()
    constant[3] = 0
    head.standardise_by(shift, constant)
    assert head(moved).isfinite().all()


@pytest.mark.parametrize("options", [{}, {"standardise": True}, {"cat_cls": True}])
def test_a_skipped_block_is_not_seen(options):
    head = GloriHead(6, 5, generator=seeded(), skip=3, **SMALL, **options).double().eval()
    batch = make_batch(dtype=torch.float64)
    if options.get("standardise"):
        head.standardise_by(torch.linspace(-1, 1, 10), torch.linspace(1, 2, 10))
    before = head(batch)
    for features in (batch.patches, batch.cls):
        features[..., -3:] = 7
        features[..., 0] = 9
    torch.testing.assert_close(head(batch), before)
    batch.patches[..., 1] = 7
    assert not torch.allclose(head(batch), before)


def test_dropout_is_there_in_training_and_never_in_attention_maps():
    head, batch = make_small(dropout=0.5), make_batch(dtype=torch.float64)
    quiet, looked = head(batch), head.attention(batch)
    head.train()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert not torch.allclose(head(batch), quiet)
    assert torch.equal(head.attention(batch), looked)
    assert head.training


def test_it_learns_where_a_finding_is():
    # A finding is present where one patch anywhere shows one of its two directions; the mean patch hardly tells.
    generator = seeded(5)
    patches = torch.randn(256, 16, 10, generator=generator)
    labels = (torch.rand(256, 2, generator=generator) < 0.5).float()
    place = torch.randint(16, (256, 2), generator=generator)
    for finding in range(2):
        rows = labels[:, finding] == 1
        patches[rows, place[rows, finding], finding] += 5
    batch = SimpleNamespace(pooled=None, cls=None, mean=None, patches=patches)
    head = GloriHead(10, 2, generator=seeded(), dropout=0.0, **SMALL)
    optimiser = torch.optim.AdamW((p for p in head.parameters() if p.requires_grad), lr=3e-3)
    for _ in range(60):
        optimiser.zero_grad()
        F.binary_cross_entropy_with_logits(head(batch), labels).backward()
        optimiser.step()
    assert ((head(batch) > 0) == (labels == 1)).float().mean() > 0.95
    looked = head.attention(batch).mean(dim=1).argmax(dim=-1)
    for finding in range(2):
        rows = labels[:, finding] == 1
        assert (looked[rows, finding] == place[rows, finding]).float().mean() > 0.8


def test_what_cannot_be_used_is_named():
    batch = make_batch(dtype=torch.float64)
    with pytest.raises(StudyError, match="10 channels and the head reads 12"):
        GloriHead(12, 5, generator=seeded(), **SMALL)(batch)
    with pytest.raises(StudyError, match="made with standardise"):
        make_small().standardise_by(torch.zeros(10), torch.ones(10))
    batch.patches = batch.patches[:, :15]
    with pytest.raises(StudyError, match="15 patch tokens make no square grid"):
        make_small("glori_v2")(batch)
    batch.patches = None
    with pytest.raises(StudyError, match="freeze them with patches"):
        make_small()(batch)
