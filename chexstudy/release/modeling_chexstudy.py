"""An image-text model of chest radiographs: two encoders of transformers, one projection each, one temperature.

This file is shipped with the weights and needs torch and transformers alone:

    from transformers import AutoModel
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    images = model.get_image_features(pixel_values)
    texts = model.get_text_features(input_ids, attention_mask)
"""

import inspect
import math
from dataclasses import dataclass

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

# Batch normalisation that does not come pretrained is group normalisation with groups of so many channels.
CHANNELS_A_GROUP = 16
# Any other is, for transformers, the name of a repository of the Hub whose code it fetches and runs.
ATTENTIONS = ("eager", "sdpa", "flash_attention_2")


class ChexstudyConfig(PreTrainedConfig):
    """Constants of the pair.

    Each side has the configuration and the name of the class of its encoder in ``transformers``, the length of its
    pooled vector, and how tokens become one vector: images by ``cls``, ``mean`` and ``max`` of the patch tokens, joined
    as in ``mean+max``, texts by ``last``, ``first`` or ``mean``, both by ``pooler`` or ``projection``. Texts are padded
    to ``text_length`` tokens and read without a mask; 0 is for texts of any length with a mask. Group normalisation may
    stand in for batch normalisation in the image encoder. ``logit_scale_init_value`` is the logarithm of the inverse
    temperature that training would go on from, ``logit_scale_max`` the upper bound of the inverse temperature, 0 for
    none.
    """

    model_type = "chexstudy"
    sub_configs = {"image_config": AutoConfig, "text_config": AutoConfig}  # noqa: RUF012
    has_no_defaults_at_init = True

    def __init__(
        self,
        image_config: PreTrainedConfig | dict | None = None,
        text_config: PreTrainedConfig | dict | None = None,
        image_class: str = "",
        text_class: str = "",
        image_pooling: str = "cls",
        text_pooling: str = "last",
        text_length: int = 0,
        text_padding_id: int = 0,
        group_normalisation: bool = False,
        image_dim: int = 768,
        text_dim: int = 768,
        dim: int = 512,
        logit_scale_init_value: float = 4.6,
        logit_scale_max: float = 0.0,
        **kwargs,
    ):
        self.image_config = _read_config(image_config)
        self.text_config = _read_config(text_config)
        self.image_class, self.text_class = image_class, text_class
        self.image_pooling, self.text_pooling = image_pooling, text_pooling
        self.text_length, self.text_padding_id = text_length, text_padding_id
        self.group_normalisation = group_normalisation
        self.image_dim, self.text_dim, self.dim = image_dim, text_dim, dim
        self.logit_scale_init_value, self.logit_scale_max = logit_scale_init_value, logit_scale_max
        super().__init__(**kwargs)


@dataclass
class ChexstudyOutput(ModelOutput):
    """What the model returns; values of an input that was not given are None."""

    logits_per_image: Tensor | None = None  # scaled cosines ``(images, texts)``
    logits_per_text: Tensor | None = None  # the same, ``(texts, images)``
    image_embeds: Tensor | None = None  # unit-norm ``(images, dim)``
    text_embeds: Tensor | None = None  # unit-norm ``(texts, dim)``


class ChexstudyModel(PreTrainedModel):
    """Embeds radiographs and reports in one unit sphere."""

    config_class = ChexstudyConfig
    main_input_name = "pixel_values"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: ChexstudyConfig):
        for part in (config, config.image_config, config.text_config):
            if part._attn_implementation not in (None, *ATTENTIONS):
                raise ValueError(
                    f"the attention {part._attn_implementation!r} would be code of the Hub: "
                    f"name one of {', '.join(ATTENTIONS)}."
                )
        super().__init__(config)
        self.image_encoder = _build_encoder(config.image_config, config.image_class, config.image_pooling)
        self.text_encoder = _build_encoder(config.text_config, config.text_class, config.text_pooling)
        if config.group_normalisation:
            _replace_batch_normalisation(self.image_encoder)
        self.image_projection = nn.Linear(config.image_dim, config.dim, bias=False)
        self.text_projection = nn.Linear(config.text_dim, config.dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale_init_value))
        self._is_convolutional = config.image_config.model_type == "resnet"
        self._interpolates = "interpolate_pos_encoding" in inspect.signature(self.image_encoder.forward).parameters
        self.post_init()

    def train(self, mode: bool = True):
        """As ``nn.Module.train``, but batch normalisation keeps its pretrained statistics."""
        super().train(mode)
        for module in self.image_encoder.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        # from_pretrained ends by eval(): the place to lay out the kernels that it has read, as in training.
        if self._is_convolutional:
            self.image_encoder.to(memory_format=torch.channels_last)
        return self

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Normalised pixels ``(batch, channels, size, size)``, as the image processor gives them, to unit-norm
        embeddings ``(batch, dim)``.
        """
        pixel_values = pixel_values.to(self.image_projection.weight.dtype)
        if self._is_convolutional:
            pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        options = {"interpolate_pos_encoding": True} if self._interpolates else {}
        output = self.image_encoder(pixel_values=pixel_values, **options)
        return _project(self.image_projection, self._pool_image(output, pixel_values.shape[-1]))

    def get_text_features(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Token ids ``(batch, length)``, padded on the right, to unit-norm embeddings ``(batch, dim)``.

        All tokens count where no mask is given. A report is one segment: ``token_type_ids`` are not used, and are here
        so that a tokenizer's output can be unpacked.
        """
        if self.config.text_length:
            missing = max(self.config.text_length - input_ids.shape[1], 0)
            input_ids = functional.pad(input_ids, (0, missing), value=self.config.text_padding_id)
            attention_mask = None
        output = self.text_encoder(input_ids=input_ids, attention_mask=attention_mask)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        return _project(self.text_projection, self._pool_text(output, attention_mask))

    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> ChexstudyOutput | tuple:
        """Embed images, texts or both; logits where there are both."""
        images = None if pixel_values is None else self.get_image_features(pixel_values)
        texts = None if input_ids is None else self.get_text_features(input_ids, attention_mask)
        logits = None
        if images is not None and texts is not None:
            logits = self.bounded_logit_scale().exp() * images @ texts.T
        output = ChexstudyOutput(logits, None if logits is None else logits.T, images, texts)
        return output.to_tuple() if return_dict is False else output

    def bounded_logit_scale(self) -> Tensor:
        """Logarithm of the inverse temperature, clamped where a bound is set."""
        if self.config.logit_scale_max > 0:
            return self.logit_scale.clamp(max=math.log(self.config.logit_scale_max))
        return self.logit_scale

    def _pool_image(self, output: ModelOutput, size: int) -> Tensor:
        pooling = self.config.image_pooling
        if pooling == "pooler":
            return output.pooler_output.flatten(1)
        if pooling == "projection":
            return output.image_embeds
        tokens = output.last_hidden_state
        if tokens.ndim == 4:
            patches = tokens.flatten(2).transpose(1, 2)
        else:
            # Whatever is more than one token a patch ([CLS], registers) stands before the patches.
            patch = getattr(self.config.image_config, "patch_size", None)
            prefix = tokens.shape[1] - (size // patch) ** 2 if isinstance(patch, int) else 0
            patches = tokens[:, max(prefix, 0) :]
        pooled = {"cls": lambda: tokens[:, 0], "mean": lambda: patches.mean(1), "max": lambda: patches.amax(1)}
        return torch.cat([pooled[part]() for part in pooling.split("+")], dim=1)

    def _pool_text(self, output: ModelOutput, mask: Tensor) -> Tensor:
        pooling = self.config.text_pooling
        if pooling == "pooler":
            return output.pooler_output
        if pooling == "projection":
            return output.text_embeds
        tokens = output.last_hidden_state
        if pooling == "first":
            return tokens[:, 0]
        if pooling == "last":
            last = (mask.sum(1) - 1).clamp(min=0)
            return tokens[torch.arange(len(tokens), device=tokens.device), last]
        weights = mask.unsqueeze(-1).to(tokens.dtype)
        return (tokens * weights).sum(1) / weights.sum(1).clamp(min=1)


def _read_config(values: PreTrainedConfig | dict | None) -> PreTrainedConfig | None:
    return AutoConfig.for_model(**values) if isinstance(values, dict) else values


def _build_encoder(config: PreTrainedConfig, class_name: str, pooling: str) -> PreTrainedModel:
    model_class = getattr(transformers, class_name)
    options = {}
    if "add_pooling_layer" in inspect.signature(model_class.__init__).parameters:
        options["add_pooling_layer"] = pooling == "pooler"
    return model_class(config, **options)


def _replace_batch_normalisation(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.GroupNorm(max(child.num_features // CHANNELS_A_GROUP, 1), child.num_features))
        else:
            _replace_batch_normalisation(child)


def _project(projection: nn.Linear, features: Tensor) -> Tensor:
    return functional.normalize(projection(features).float(), dim=1)


# So that save_pretrained ships this file with the weights.
ChexstudyConfig.register_for_auto_class()
ChexstudyModel.register_for_auto_class("AutoModel")
