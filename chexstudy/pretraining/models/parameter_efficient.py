"""Which weights of an encoder are trained: low-rank updates in place of its weights, its biases only, or none.

Each function changes an encoder of `chexstudy.encoders.build` in place. The projections into the shared space are not
part of an encoder and are trained whatever is chosen here.
"""

from functools import partial

import torch
from torch import nn

from chexstudy.encoders.image import ImageEncoder
from chexstudy.encoders.text import TextEncoder
from chexstudy.errors import StudyError

_Encoder = ImageEncoder | TextEncoder
# The name of the updates within peft; it is part of their parameters' names.
_ADAPTER = "default"


def add_low_rank_updates(encoder: _Encoder, rank: int, alpha: float, seed: int, dropout: float = 0.0) -> None:
    """Freeze an encoder and add a trainable low-rank update to every linear layer of its blocks.

    A layer computes ``x (W + (alpha / rank) B A)^T``, with ``W (out, in)`` frozen, ``B (out, rank)`` zero at first and
    ``A (rank, in)`` drawn (Hu et al. 2022, section 4.1). Their experiments adapt attention only; here the layers of the
    MLP are adapted too, as is usual since Dettmers et al. 2023 (section 4). A pooler or a projection behind the blocks
    is frozen without an update.

    The seed decides ``A``; the global random state is left as it was.
    """
    if rank < 1 or alpha <= 0:
        raise StudyError(f"low-rank updates need a rank of at least 1 and a positive alpha, not {rank} and {alpha}.")
    try:
        from peft import LoraConfig, inject_adapter_in_model
        from transformers.pytorch_utils import Conv1D
    except ImportError:
        raise StudyError("low-rank updates need the package peft: install it, or set lora_rank to 0.") from None
    if has_low_rank_updates(encoder):
        raise StudyError(f"{encoder.origin['name']} has low-rank updates already: merge them before adding others.")
    # A number in a name is a place in a list of blocks.
    modules = dict(encoder.model.named_modules())
    linear = [name for name, module in modules.items() if isinstance(module, nn.Linear | Conv1D)]
    layers = [name for name in linear if any(part.isdigit() for part in name.split("."))]
    if not layers:
        raise StudyError(
            f"{encoder.origin['name']} has no attention or MLP layers for low-rank updates: set lora_rank to 0, or use "
            "a transformer such as tiny-vit."
        )
    # GPT-2's layers hold their weights transposed.
    turned = isinstance(modules[layers[0]], Conv1D)
    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, bias="none", target_modules=layers, fan_in_fan_out=turned
    )
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which reseeds every GPU as well.
        torch.default_generator.manual_seed(seed)
        inject_adapter_in_model(config, encoder.model, _ADAPTER)
    encoder.requires_grad_(False)
    for update in _updated_layers(encoder).values():
        for part in (update.lora_A, update.lora_B):
            part[_ADAPTER].requires_grad_(True)


def has_low_rank_updates(encoder: _Encoder) -> bool:
    """Whether `add_low_rank_updates` was called and `merge_low_rank_updates` was not."""
    return hasattr(encoder.model, "peft_config")


def merge_low_rank_updates(encoder: _Encoder) -> None:
    """Add the updates to the weights and take them away: the encoder is again a plain ``transformers`` model.

    Its embeddings stay the same up to rounding, `save_encoder` writes it as any other, and its weights stay frozen. An
    encoder without updates is left as it is.
    """
    if not has_low_rank_updates(encoder):
        return
    for name, layer in _updated_layers(encoder).items():
        layer.merge()
        encoder.model.set_submodule(name, layer.get_base_layer())
    del encoder.model.peft_config


def freeze_encoder(encoder: _Encoder) -> None:
    """Take an encoder out of training for good: no gradients, and evaluation mode whatever ``train`` is told.

    So the dropout of a frozen tower is off and its features can be computed once (locked tuning: Zhai et al. 2022).
    """
    encoder.requires_grad_(False)
    encoder.eval()
    # On the object, where the recursion of the modules that hold it finds it; a partial is copied with its object.
    encoder.train = partial(_stay_in_evaluation, encoder)


def bias_only(encoder: _Encoder) -> None:
    """Leave only the biases of an encoder trainable, those of its normalisation too (BitFit: Ben Zaken et al. 2022)."""
    biases = [parameter for name, parameter in encoder.named_parameters() if name.rpartition(".")[2] == "bias"]
    if not biases:
        raise StudyError(f"{encoder.origin['name']} has no biases to train: train its weights or low-rank updates.")
    encoder.requires_grad_(False)
    for bias in biases:
        bias.requires_grad_(True)


def _stay_in_evaluation(encoder: _Encoder, mode: bool = True) -> _Encoder:
    return encoder


def _updated_layers(encoder: _Encoder) -> dict[str, nn.Module]:
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in encoder.model.named_modules() if isinstance(module, LoraLayer)}
