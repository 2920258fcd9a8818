"""Matrix products of many rows with a few centres, and how far their rounding can be off."""

import torch
from torch import Tensor
from torch.nn.functional import linear

# Fewer multiplications are done before oneDNN has laid out its operands.
_WORTH_LAYING_OUT = 2**24
_BLOCK_ROWS = 2048


def multiply_rows(rows: Tensor, centres: Tensor, offsets: Tensor | None = None) -> Tensor:
    """Inner products of rows and centres, plus an offset for each centre.

    On a CPU, large float32 products go to oneDNN, which uses the widest vectors of any processor; the BLAS that torch
    calls otherwise does so on one maker's only.

    Args:
        rows: ``(n, dim)``.
        centres: ``(count, dim)``, of the same type.
        offsets: ``(count,)``, or None for zeros.

    Returns:
        ``(n, count)``.
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
