"""The language model that writes reports: a causal one of the Hub or a folder, or a tiny one made here.

The tiny one has under a million weights and learns to write from the training reports alone, once a seed for all arms
and before any image is seen: what is left to learn from images is then what they show, and not how reports are written.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from chexstudy.devices import autocast, autocast_dtype
from chexstudy.encoders import hub
from chexstudy.encoders.embeddings import hash_texts
from chexstudy.encoders.tokenizer import train_byte_pairs
from chexstudy.errors import StudyError
from chexstudy.evaluation.adaptation.training import seeded
from chexstudy.progress import progress
from chexstudy.runs import Run

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TINY = "tiny"
_WIDTH, _INNER, _LAYERS, _HEADS, _POSITIONS = 128, 320, 3, 4, 1024
_WARM_UP, _LONGEST_GRADIENT = 0.03, 1.0
# So many batches are sorted by length together: little padding, and still another neighbourhood in every epoch.
_SORTED_BATCHES = 16
# Of what may be in a causal model's checkpoint without being used: heads that are tied, old buffers.
_UNUSED = (r"rotary_emb\.", r"\.attn\.(masked_)?bias$")
_IGNORED = -100


@dataclass(frozen=True)
class Stage:
    """One stage of training, cosine schedule after a warm-up over 3 % of the steps, AdamW without weight decay."""

    epochs: float
    learning_rate: float
    batch_size: int = 64
    least_steps: int = 0  # so many where the epochs have fewer: after 160 every report was the commonest
    second_moment: float = 0.999  # how slowly AdamW forgets squares of gradients; less for hundreds of steps

    def __post_init__(self):
        if not (self.epochs >= 0 and self.learning_rate > 0 and self.batch_size >= 1):
            raise StudyError(
                "a stage has epochs of 0 or more, a learning rate above 0 and a batch of 1 or more, not "
                f"{self.epochs}, {self.learning_rate} and {self.batch_size}."
            )


class LanguageModel(nn.Module):
    """A causal language model with its tokenizer."""

    def __init__(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", origin: dict):
        super().__init__()
        self.model, self.tokenizer, self.origin = model, tokenizer, origin
        if tokenizer.eos_token_id is None:
            raise StudyError(f"the tokenizer of {origin['name']} has no token that ends a text: give another model.")
        self.end = tokenizer.eos_token_id
        self.start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        self.width = model.get_input_embeddings().weight.shape[1]
        self.positions = getattr(model.config, "max_position_embeddings", None) or _POSITIONS

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of each text, without any that start or end it."""
        return self.tokenizer(list(texts), add_special_tokens=False).input_ids if len(texts) else []

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens ``(...)`` as the model sees them ``(..., width)``."""
        return self.model.get_input_embeddings()(tokens)

    def sum_loss(self, seen: Tensor, given: Sequence[list[int]], answers: Sequence[list[int]]) -> Tensor:
        """Cross-entropy of the tokens of all answers, summed; of what is given before them there is no loss.

        ``seen`` comes first ``(batch, length, width)``. Answers are padded on the right, where no token of theirs
        looks.
        """
        texts = [[*one, *answer] for one, answer in zip(given, answers, strict=True)]
        longest = max(map(len, texts))
        tokens = torch.tensor([text + [self.end] * (longest - len(text)) for text in texts])
        place = torch.arange(longest)
        start, stop = (torch.tensor([*map(len, one)]).unsqueeze(1) for one in (given, texts))
        targets = tokens.masked_fill((place < start) | (place >= stop), _IGNORED).to(seen.device)
        context = torch.cat([seen, self.embed(tokens[:, :-1].to(seen.device))], dim=1)
        logits = self.model(inputs_embeds=context, use_cache=False, logits_to_keep=longest).logits.float()
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")

    @torch.no_grad()
    def write(self, seen: Tensor, most: int, use_cache: bool = True) -> list[str]:
        """The likeliest next token again and again until a text ends or has ``most``; contexts of one length."""
        from transformers import GenerationConfig

        # None of the checkpoint's own: no sampling, no penalties.
        config = GenerationConfig(
            max_new_tokens=most,
            do_sample=False,
            use_cache=use_cache,
            eos_token_id=self.end,
            pad_token_id=self.end,
            bos_token_id=self.start[0] if self.start else self.end,
        )
        mask = torch.ones(seen.shape[:2], dtype=torch.long, device=seen.device)
        tokens = self.model.generate(inputs_embeds=seen, attention_mask=mask, generation_config=config)
        texts = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [" ".join(text.split()) for text in texts]


def load_language_model(name: str) -> LanguageModel:
    """A causal language model of the Hub, ``name`` or ``name@revision``, or of a folder, in float32."""
    from transformers import AutoModelForCausalLM

    model, _, revision = name.partition("@")
    checkpoint = hub.find_checkpoint(model, revision)
    hub.read_config(checkpoint)
    loaded = hub.load_model(checkpoint, AutoModelForCausalLM, _UNUSED)
    return LanguageModel(loaded, hub.read_tokenizer(checkpoint), {"name": name, "revision": checkpoint.commit})


def train_tiny_model(
    run: Run, texts: Sequence[str], stage: Stage, seed: int, device: torch.device | str = "cpu"
) -> tuple[LanguageModel, str]:
    """The tiny language model of these training reports, as the study keeps it, else trained; and under what name."""
    language_model = _make_tiny_model(train_byte_pairs(texts), seed).to(device)
    answers = list_answers(language_model, texts)
    start = torch.tensor(language_model.start, device=device)

    def measure(rows: np.ndarray) -> Tensor:
        seen = language_model.embed(start.expand(len(rows), 1))
        return language_model.sum_loss(seen, [[]] * len(rows), [answers[row] for row in rows])

    def train() -> dict:
        return train_stage(language_model, measure, answers, stage, seed, "learning to write")

    of_texts = hash_texts(texts)
    name = f"report_models/{TINY}-{of_texts[:8]}/seed{seed}/writing"
    train_or_load(run, name, language_model, train, {"texts": of_texts, "stage": asdict(stage), "seed": seed})
    return language_model, name


def _make_tiny_model(tokenizer: "PreTrainedTokenizerBase", seed: int) -> LanguageModel:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=_WIDTH,
        intermediate_size=_INNER,
        num_hidden_layers=_LAYERS,
        num_attention_heads=_HEADS,
        max_position_embeddings=_POSITIONS,
        tie_word_embeddings=True,
        attn_implementation="eager",  # for sequences of tens of tokens, half the time of fused attention in bfloat16
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return LanguageModel(LlamaForCausalLM(config), tokenizer, {"name": TINY, "revision": ""})


# --- training --------------------------------------------------------------------------------------------------------


def list_answers(language_model: LanguageModel, texts: Sequence[str], most: int = _POSITIONS // 2) -> list[list[int]]:
    """Tokens of each text, of one that is longer the first ``most``, and the token that ends it."""
    return [[*tokens[:most], language_model.end] for tokens in language_model.encode(texts)]


def train_stage(
    module: nn.Module,
    measure: Callable[[np.ndarray], Tensor],
    answers: Sequence[Sequence[int]],
    stage: Stage,
    seed: int,
    label: str,
    at_once: int = 64,
) -> dict:
    """Train what wants gradients in a module, in place, and tell what it took: texts and tokens seen, and seconds.

    ``measure`` gives the loss of some of the answers, summed over their tokens; a batch is measured in parts of at most
    ``at_once``. The global random state, from which dropout draws, is left as it was.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    device = trained[0].device
    lengths = np.array([len(answer) for answer in answers])
    steps = max(math.ceil(stage.epochs * math.ceil(len(answers) / stage.batch_size)), stage.least_steps)
    warm_up = max(1, round(_WARM_UP * steps))

    def rate(step: int) -> float:
        done = max(0, step - warm_up) / max(1, steps - warm_up)
        return min(1.0, (step + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * done))

    optimizer = torch.optim.AdamW(
        trained, stage.learning_rate, (0.9, stage.second_moment), weight_decay=0.0, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    dtype, began = autocast_dtype(device), time.perf_counter()
    cost = {"steps": steps, "texts_seen": 0, "tokens_seen": 0}
    module.train()
    with seeded(seed, device):
        for rows in progress(islice(_draw_batches(lengths, stage.batch_size, seed), steps), steps, label):
            optimizer.zero_grad()
            tokens = int(lengths[rows].sum())
            for part in np.split(rows, range(at_once, len(rows), at_once)):
                with autocast(device, dtype):
                    loss = measure(part) / tokens
                loss.backward()
                if not torch.isfinite(loss):
                    raise StudyError(
                        f"{label} at a rate of {stage.learning_rate:g} gave a loss that is no number: "
                        "give a smaller one."
                    )
            nn.utils.clip_grad_norm_(trained, _LONGEST_GRADIENT)
            optimizer.step()
            schedule.step()
            cost["texts_seen"] += len(rows)
            cost["tokens_seen"] += tokens
    module.eval()
    return cost | {"seconds": time.perf_counter() - began}


def _draw_batches(lengths: np.ndarray, size: int, seed: int) -> Iterator[np.ndarray]:
    """Positions of each batch, epoch after epoch, those of like length together."""
    draw = np.random.default_rng(seed)
    while True:
        batches = []
        order = draw.permutation(len(lengths))
        for chunk in np.split(order, range(size * _SORTED_BATCHES, len(order), size * _SORTED_BATCHES)):
            chunk = chunk[np.argsort(lengths[chunk], kind="stable")]
            batches += np.split(chunk, range(size, len(chunk), size))
        yield from (batches[place] for place in draw.permutation(len(batches)))


def train_or_load(
    run: Run, name: str, module: nn.Module, train: Callable[[], dict], parameters: dict, inputs: tuple[str, ...] = ()
) -> None:
    """Bring a module to what the study keeps of it under ``name``, else train it and keep that, and what it took.

    What is kept are the buffers and what wants gradients.
    """
    weights, cost = f"{name}.safetensors", f"{name}.json"
    if run.is_current(weights, run.key(parameters, inputs, by=type(module))):
        module.load_state_dict(load_file(run.path(weights)), strict=False)
        module.eval()
        return
    run.write_json(cost, train())
    frozen = {one for one, value in module.named_parameters() if not value.requires_grad}
    # Weights that are tied have two names in the state and one among the parameters.
    kept = {one for one, _ in chain(module.named_parameters(), module.named_buffers())} - frozen
    state = {one: value.cpu().contiguous() for one, value in module.state_dict().items() if one in kept}
    with run.writing(weights) as temporary:
        save_file(state, temporary)
    run.record(weights, parameters, inputs, parameters["seed"], (cost,), by=type(module))
