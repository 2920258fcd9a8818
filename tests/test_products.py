"""Products of rows and centres, by whichever library: within the bound that is stated."""

import pytest
import torch

from chexstudy.vectors import products
from chexstudy.vectors.products import multiply_rows, product_rounding

pytestmark = pytest.mark.usefixtures("torch_settings")


def _matrices(rows, count, dim, dtype=torch.float32):
    generator = torch.Generator().manual_seed(rows)
    return (torch.randn(size, dim, generator=generator, dtype=dtype) for size in (rows, count))


@pytest.mark.parametrize("precision", ["highest", "medium"])
@pytest.mark.parametrize(("rows", "count", "dim"), [(0, 4, 8), (5, 3, 7), (1100, 40, 500), (2500, 33, 300)])
def test_products_are_within_the_bound(rows, count, dim, precision, monkeypatch):
    monkeypatch.setattr(products, "_BLOCK_ROWS", 1000)
    points, centres = _matrices(rows, count, dim)
    offsets = centres[:, 0].clone()
    torch.set_float32_matmul_precision(precision)
    found = multiply_rows(points, centres, offsets)
    bound = product_rounding(torch.float32, dim)
    exact = points.double() @ centres.double().T + offsets.double()
    lengths = points.double().norm(dim=1)[:, None] * centres.double().norm(dim=1) + offsets.abs()
    assert ((found.double() - exact).abs() <= bound * lengths).all()


def test_the_large_ones_here_take_the_other_library():
    assert not products._suits_onednn(*_matrices(5, 3, 7))
    assert products._suits_onednn(*_matrices(1100, 40, 500)) == torch.backends.mkldnn.is_available()


def test_gradients_pass():
    points, centres = _matrices(1100, 40, 500)
    multiply_rows(points.requires_grad_(), centres).sum().backward()
    assert torch.allclose(points.grad, centres.sum(dim=0).expand_as(points), atol=1e-4)


def test_lower_precision_widens_the_bound():
    exact = product_rounding(torch.float32, 1024)
    torch.set_float32_matmul_precision("medium")
    assert product_rounding(torch.float32, 1024) > 100 * exact
    assert product_rounding(torch.float64, 1024) < 1e-12
