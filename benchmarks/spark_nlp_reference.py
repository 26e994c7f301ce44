"""The vectors of Spark NLP's DistilBERT, computed without Spark NLP: from the tokens of its tokenizer and the model.

Spark NLP splits each token by its own copy of BERT's rules and passes only the first of the resulting subtokens to the
model. Its AVERAGE is the mean of one vector for each token, that of the token's first subword. `benchmarks/spark.py` and
tests compare these reference vectors with Spark NLP's own; `nbs/spark/59_nlp_pipeline` explains the rules."""

import unicodedata
from collections.abc import Callable

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordPiece

# the rules of Spark NLP's `BasicTokenizer`
ASCII_PUNCTUATION = set("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
CHINESE_RANGES = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF))
MAX_WORD_LENGTH = 200  # characters; a longer word is unknown


def is_punctuation(letter: str) -> bool:
    "Whether the character is ASCII punctuation, or has PUNCTUATION in its Unicode name."
    return letter in ASCII_PUNCTUATION or "PUNCTUATION" in unicodedata.name(letter, "")


def is_chinese(letter: str) -> bool:
    "Whether the character is in one of the ranges that Spark NLP treats as Chinese."
    return any(first <= ord(letter) <= last for first, last in CHINESE_RANGES)


def is_space(letter: str) -> bool:
    "Whether Java's `Character.isWhitespace` is true: it is false for spaces that do not break."
    return letter in "\t\n\v\f\r\x1c\x1d\x1e\x1f" or (
        letter not in "\xa0\u2007\u202f" and unicodedata.category(letter)[0] == "Z"
    )


def is_dropped(letter: str) -> bool:
    "Whether the character is a control character or U+FFFD, which are removed."
    return letter == "\ufffd" or (unicodedata.category(letter) == "Cc" and letter not in "\t\n\r")


def first_subtoken(
    token: str,  # from a tokenizer of Spark NLP
    lower_case: bool = True,  # True for `setCaseSensitive(False)`
) -> str:  # without accents; empty if nothing of the token is left
    "Return the part of a token that Spark NLP's DistilBERT reads."
    start = 0
    while start < len(token):
        end = start
        while end < len(token) and not any(
            ends(token[end]) for ends in (is_punctuation, is_chinese, is_space, is_dropped)
        ):
            end += 1
        stands_alone = end < len(token) and (is_punctuation(token[end]) or is_chinese(token[end]))
        for subtoken in (token[start:end], token[end] if stands_alone else ""):
            letters = unicodedata.normalize("NFD", subtoken.strip())
            plain = "".join(one for one in letters if not ("\u0300" <= one <= "\u036f" or is_dropped(one)))
            if plain:
                return plain.lower() if lower_case else plain
        start = end + 1
    return ""


def make_subword_model(
    tokenizer: Tokenizer,  # the model's, of the tokenizers library
) -> WordPiece:  # splits words into subwords
    "Make Spark NLP's splitter of words into subwords from a model's vocabulary."
    return WordPiece(tokenizer.get_vocab(), unk_token="[UNK]", max_input_chars_per_word=MAX_WORD_LENGTH)


def first_subwords(
    tokens: list[str],  # of one text, from a tokenizer of Spark NLP
    subword_model: WordPiece,  # from `make_subword_model`
    lower_case: bool = True,  # whether the model is uncased
) -> list[list[int]]:  # for each token, the ids of its subwords that the model reads
    "Return the subwords of each token's first subtoken: all that Spark NLP's DistilBERT reads of a text."
    first = [first_subtoken(token, lower_case) for token in tokens]
    return [[subword.id for subword in subword_model.tokenize(one)] if one else [] for one in first]


def reference_vector(
    subwords: list[list[int]],  # of one text, from `first_subwords`
    run_model: Callable[[np.ndarray], np.ndarray],  # token ids, int64, (n_tokens,) -> float32, (n_tokens, dim)
    ends: tuple[int, int] = (101, 102),  # ids of [CLS] and [SEP]
    max_tokens: int = 512,  # the longest input of the model, [CLS] and [SEP] included
) -> np.ndarray:  # float32, (dim,), not unit length
    """Compute Spark NLP's AVERAGE: the mean over tokens of the vector of each token's first subword.

    If a text is truncated and a token begins right after the cut, Spark NLP uses the vector of `[SEP]` for that token."""
    subwords = [token for token in subwords if token]
    ids = [subword for token in subwords for subword in token]
    begins = np.cumsum([0, *(len(token) for token in subwords[:-1])])
    vectors = run_model(np.array([ends[0], *ids[: max_tokens - 2], ends[1]], dtype=np.int64))
    return vectors[1 + begins[begins < max_tokens - 1]].mean(axis=0).astype(np.float32)
