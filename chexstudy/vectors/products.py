"""Products of many rows with a few centres, how far their rounding can be off, and sums of the rows of each centre."""

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, linear

# Fewer multiplications are done before oneDNN has laid out its operands.
_WORTH_LAYING_OUT = 2**24
_BLOCK_ROWS = 2048


def multiply_rows(rows: Tensor, centres: Tensor, offsets: Tensor | None = None) -> Tensor:
    """Inner products of rows ``(n, dim)`` and centres ``(count, dim)``, plus an offset ``(count,)`` for each centre.

    On a CPU, large float32 products go to oneDNN, which uses the widest vectors of any processor; the BLAS that torch
    calls otherwise does so on one maker's only.
    """
    if offsets is None:
        offsets = centres.new_zeros(len(centres))
    if not _suits_onednn(rows, centres):
        return torch.addmm(offsets, rows, centres.T)
    products = rows.new_empty(len(rows), len(centres))
    laid_out = centres.contiguous().to_mkldnn(), offsets.contiguous().to_mkldnn()
    for begin in range(0, len(rows), _BLOCK_ROWS):
        block = slice(begin, begin + _BLOCK_ROWS)
        products[block] = linear(rows[block].contiguous().to_mkldnn(), *laid_out).to_dense()
    return products


def _suits_onednn(rows: Tensor, centres: Tensor) -> bool:
    return (
        rows.device.type == "cpu"
        and rows.dtype == centres.dtype == torch.float32
        and type(rows) is type(centres) is Tensor
        and not (torch.is_grad_enabled() and (rows.requires_grad or centres.requires_grad))
        and rows.numel() * len(centres) >= _WORTH_LAYING_OUT
        and len(centres) >= 32
        and torch.backends.mkldnn.is_available()
    )


def product_rounding(dtype: torch.dtype, terms: int) -> float:
    """Bound of the rounding of `multiply_rows`, relative to the lengths of the two vectors.

    It holds whatever the order in which the terms are added, and also where the user permits lower precision
    (`torch.set_float32_matmul_precision`).
    """
    lowered = torch.backends.mkldnn.matmul.fp32_precision not in ("none", "ieee")
    # bfloat16 has 8 significant bits; both operands are rounded.
    inputs = 2.0**-7 if lowered and dtype == torch.float32 else 0.0
    return inputs + (terms + 8) * torch.finfo(dtype).eps / 2


def sum_by_centre(rows: Tensor, centre: Tensor, count: int, counted: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Sums ``(count, dim)`` and numbers ``(count,)`` of the rows that belong to each centre, always added in one order.

    ``centre`` ``(n,)`` is that of each row; rows that are not ``counted`` ``(n,)`` take no part.
    """
    # Those that do not take part have a sum of their own.
    group = centre if counted is None else centre.masked_fill(~counted, count)
    if rows.device.type != "cpu":
        # Scattered sums of a GPU differ from run to run; a product does not.
        belongs = (group.unsqueeze(1) == torch.arange(count, device=group.device)).to(rows)
        return belongs.T @ rows, belongs.sum(dim=0)
    sorted_group, order = torch.sort(group, stable=True)
    edges = torch.searchsorted(sorted_group, torch.arange(count + 2))
    sums = embedding_bag(order, rows, edges[:-1], mode="sum")
    return sums[:count], edges.diff()[:count].to(rows)
