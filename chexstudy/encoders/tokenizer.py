"""Tokenizers trained on a cohort's own training reports: WordPiece to read them by, byte pairs to write them by."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from chexstudy.errors import StudyError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CONTINUATION = "##"


def split_words(text: str) -> list[str]:
    """The words that `train_wordpiece` learns from: in lower case, split at white space and punctuation."""
    from tokenizers import normalizers, pre_tokenizers

    normal = normalizers.BertNormalizer(lowercase=True).normalize_str(text)
    return [word for word, _ in pre_tokenizers.BertPreTokenizer().pre_tokenize_str(normal)]


def train_wordpiece(
    texts: Sequence[str], vocabulary_size: int = 4000, min_frequency: int = 2, max_tokens: int = 256
) -> "PreTrainedTokenizerBase":
    """Train a lower-casing WordPiece tokenizer; the same texts give the same ids on every machine.

    The texts must be those of a training split; their order does not matter. There are at most ``vocabulary_size``
    tokens, special ones included. Every character of the texts is a token, so a text of known characters never yields
    ``[UNK]``, even if that needs more. Pieces rarer than ``min_frequency`` are not merged. Texts are cut at
    ``max_tokens`` when the caller asks for truncation.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import BertTokenizer

    normalizer = normalizers.BertNormalizer(lowercase=True)
    characters = sorted({character for text in texts for character in normalizer.normalize_str(text)} - set(" \t\n\r"))
    if not characters:
        raise StudyError(
            "no tokenizer can be trained: every training report is empty; give reports or a pretrained text encoder."
        )
    # The trainer numbers continuation characters in the order of a randomly seeded hash map, and breaks ties between
    # merges by these numbers. Naming all characters first fixes the numbers, and with them the whole vocabulary.
    alphabet = [*_SPECIAL_TOKENS, *characters, *(CONTINUATION + character for character in characters)]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", continuing_subword_prefix=CONTINUATION))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=max(vocabulary_size, len(alphabet)),
        min_frequency=min_frequency,
        special_tokens=alphabet,
        continuing_subword_prefix=CONTINUATION,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return BertTokenizer(vocab=tokenizer.get_vocab(), do_lower_case=True, model_max_length=max_tokens)


def train_byte_pairs(texts: Sequence[str], vocabulary_size: int = 800) -> "PreTrainedTokenizerBase":
    """Train byte-level byte pairs, whose tokens give back any text as it was, capitals and spaces too.

    The texts must be those of a training split; the same ones give the same ids on every machine. There are at most
    ``vocabulary_size`` tokens, the 256 bytes and ``<pad>``, ``<s>`` and ``</s>`` included.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        min_frequency=2,
        special_tokens=list(special.values()),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special)
