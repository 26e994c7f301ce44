"""Tiny models in the shapes of current ones, with seeded random weights, as sentence-transformers saves them."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    Gemma3TextConfig,
    Gemma3TextModel,
    GemmaTokenizer,
    ModernBertConfig,
    ModernBertModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3Model,
)

from arxiv_embeddings.papers.corpus import read_papers, sample_papers
from arxiv_embeddings.papers.texts import make_texts

PROMPTS = {"query": "task: search result | query: ", "document": "title: none | text: "}
N_POSITIONS = 256
LONG = 8192  # positions of ModernBERT
SIZE = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}


def sample_texts(limit: int | None = None) -> list[str]:
    "Title and abstract of the sample corpus's papers."
    return make_texts(read_papers(sample_papers()).table(limit=limit), separator=". ")


def varied_texts() -> list[str]:
    "20 texts, from one letter to more tokens than the models' number of positions."
    papers = sample_texts(limit=17)
    pieces = [text[: 20 + 157 * position % 900] for position, text in enumerate(papers)]
    return ["x", "Graphs", *(piece.strip() for piece in pieces), " ".join(papers[14:])]


def common_words(n_words: int = 300) -> list[str]:
    "The sample corpus's most frequent words; words of equal frequency in the alphabet's order."
    words = Counter(" ".join(sample_texts()).lower().split())
    plain = {word: count for word, count in words.items() if word.isascii() and word.isalpha() and len(word) > 1}
    return sorted(plain, key=lambda word: (-plain[word], word))[:n_words]


def make_wordpiece(max_tokens: int = N_POSITIONS) -> PreTrainedTokenizerFast:
    "A tokenizer like BERT's."
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(number) for number in range(33, 127) if not chr(number).isupper()]
    pieces = [*special, *letters, *(f"##{letter}" for letter in letters), *common_words()]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=max_tokens, **names)


def make_merges(words: list[str], letters: list[str], special: list[str]) -> tuple[dict[str, int], list]:
    "Vocabulary and merges of a BPE that puts words together letter by letter from the left."
    steps = {word[:end]: (word[: end - 1], word[end - 1]) for word in words for end in range(2, len(word) + 1)}
    pieces = dict.fromkeys([*special, *letters, *steps])
    return {piece: number for number, piece in enumerate(pieces)}, list(steps.values())


def make_qwen_tokenizer() -> Qwen2Tokenizer:
    "A tokenizer like Qwen3-Embedding's: bytes, padding on the left, and `<|endoftext|>` at the end of each text."
    end = "<|endoftext|>"
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary, merges = make_merges([f"\u0120{word}" for word in common_words()], letters, [])
    vocabulary[end] = len(vocabulary)
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=merges, padding_side="left", model_max_length=N_POSITIONS)
    tokenizer.backend_tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False, use_regex=False),
            TemplateProcessing(single=f"$A {end}", special_tokens=[(end, vocabulary[end])]),
        ]
    )
    return tokenizer


def make_gemma_tokenizer() -> GemmaTokenizer:
    "A tokenizer like EmbeddingGemma's: `<bos>` before and `<eos>` after each text."
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    letters = [*(f"<0x{number:02X}>" for number in range(256)), "\u2581", *map(chr, range(33, 127))]
    vocabulary, merges = make_merges([f"\u2581{word}" for word in common_words()], letters, special)
    return GemmaTokenizer(
        vocab=vocabulary, merges=merges, add_bos_token=True, add_eos_token=True, model_max_length=N_POSITIONS
    )


def fill_weights(
    model: torch.nn.Module,  # changed in place
    seed: int,  # another seed, other weights
) -> None:
    "Fill a model with random numbers that are the same in every version of the libraries."
    numbers = np.random.RandomState(seed)
    with torch.no_grad():
        for name, weights in sorted(model.named_parameters()):
            drawn = numbers.standard_normal(weights.shape)
            if weights.ndim == 2:
                drawn *= 1 if "embed" in name and "projection" not in name else 1.2 * weights.shape[1] ** -0.5
            else:
                drawn *= 0.1
            mean = 1 if weights.ndim == 1 and name.endswith("weight") and weights.mean() == 1 else 0
            weights.copy_(torch.from_numpy(drawn + mean))


def make_bert(n_tokens: int) -> PreTrainedModel:
    "A BERT of two layers, as MiniLM, MPNet and E5 are."
    return BertModel(BertConfig(vocab_size=n_tokens, max_position_embeddings=N_POSITIONS, **SIZE))


def make_distilbert(n_tokens: int) -> PreTrainedModel:
    "A DistilBERT of two layers."
    sizes = {"dim": 48, "n_layers": 2, "n_heads": 4, "hidden_dim": 96}
    return DistilBertModel(DistilBertConfig(vocab_size=n_tokens, max_position_embeddings=N_POSITIONS, **sizes))


def make_modernbert(n_tokens: int) -> PreTrainedModel:
    "A ModernBERT of three layers, of which two see 8 tokens to each side."
    ids = {"pad_token_id": 0, "cls_token_id": 2, "bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3}
    sizes = SIZE | {"num_hidden_layers": 3, "local_attention": 16, "max_position_embeddings": LONG}
    return ModernBertModel(ModernBertConfig(vocab_size=n_tokens, global_attn_every_n_layers=3, **sizes, **ids))


def make_gemma3(n_tokens: int) -> PreTrainedModel:
    "A Gemma 3 of two layers that reads in both directions, as EmbeddingGemma does; the first layer sees 16 tokens."
    options = {"use_bidirectional_attention": True, "sliding_window": 32, "sliding_window_pattern": 2}
    heads = {"num_key_value_heads": 2, "head_dim": 16, "query_pre_attn_scalar": 16}
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    sizes = {"vocab_size": n_tokens, "max_position_embeddings": N_POSITIONS}
    return Gemma3TextModel(Gemma3TextConfig(**SIZE, **sizes, **options, **heads, **ids))


def make_qwen3(n_tokens: int) -> PreTrainedModel:
    "A Qwen3 of two layers, which reads from left to right."
    heads = {"num_key_value_heads": 2, "head_dim": 16}
    ids = {"pad_token_id": n_tokens - 1, "eos_token_id": n_tokens - 1}
    return Qwen3Model(Qwen3Config(vocab_size=n_tokens, max_position_embeddings=N_POSITIONS, **SIZE, **heads, **ids))


@dataclass(frozen=True)
class Shape:
    "How one tiny model is made."

    make_transformer: Callable[[int], PreTrainedModel]  # for a number of token ids
    make_tokenizer: Callable[[], Any]  # of transformers
    pooling: str | tuple[str, ...]  # in sentence-transformers' names
    modules: tuple[str, ...]  # after the pooling
    include_prompt: bool = True  # whether pooling counts the prompt's tokens


SHAPES = {
    "bert": Shape(make_bert, make_wordpiece, "mean", ("Normalize",)),
    "distilbert": Shape(make_distilbert, make_wordpiece, "mean", ()),
    "modernbert": Shape(make_modernbert, partial(make_wordpiece, LONG), "cls", ()),
    "gemma3": Shape(make_gemma3, make_gemma_tokenizer, "mean", ("Dense", "Dense", "Normalize")),
    "qwen3": Shape(make_qwen3, make_qwen_tokenizer, "lasttoken", ("Normalize",)),
    "layernorm": Shape(make_bert, make_wordpiece, ("max", "mean_sqrt_len_tokens"), ("LayerNorm",)),
    "instructor": Shape(make_bert, make_wordpiece, ("cls", "mean"), ("Dense", "Normalize"), include_prompt=False),
    "weighted": Shape(make_qwen3, make_qwen_tokenizer, ("weightedmean", "lasttoken"), ()),
}


def make_modules(names: tuple[str, ...], dim: int) -> list[torch.nn.Module]:
    "The modules after a pooling of `dim` numbers; dense layers first widen, then narrow."
    modules = []
    for name in names:
        if name == "Dense":
            wide = 96 if "Dense" not in [type(module).__name__ for module in modules] else 40
            activation = torch.nn.Tanh() if wide == 40 else torch.nn.Identity()
            modules.append(Dense(dim, wide, bias=wide == 96, activation_function=activation))
            dim = wide
        else:
            modules.append(Normalize() if name == "Normalize" else LayerNorm(dim))
    return modules


def make_shape(
    name: str,  # one of `SHAPES`
    folder: Path,  # made if need be
    seed: int = 0,  # another seed, other weights
) -> Path:  # the folder
    "Write a tiny model with prompts for papers and queries."
    shape, plain = SHAPES[name], folder / "plain"
    tokenizer = shape.make_tokenizer()
    model = shape.make_transformer(len(tokenizer))
    fill_weights(model, seed)
    model.save_pretrained(plain)
    tokenizer.save_pretrained(plain)
    transformer = Transformer(str(plain))
    pooling = Pooling(model.config.hidden_size, pooling_mode=shape.pooling, include_prompt=shape.include_prompt)
    others = make_modules(shape.modules, pooling.get_embedding_dimension())
    for position, module in enumerate(others):
        fill_weights(module, seed + 1 + position)
    whole = SentenceTransformer(modules=[transformer, pooling, *others], prompts=PROMPTS, device="cpu")
    whole.save_pretrained(str(folder / "model"), create_model_card=False)
    return folder / "model"
