"""Models in SPECTER2's shape: a BERT with a vocabulary of its own and an adapter for it, with seeded random weights."""

from pathlib import Path

import torch
from adapters import BertAdapterModel
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.trainers import BpeTrainer
from transformers import BertConfig, BertModel, BertTokenizerFast

from arxiv_embeddings.papers.corpus import read_papers, sample_papers
from arxiv_embeddings.papers.texts import make_texts

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
N_POSITIONS = 512


def sample_texts(limit: int | None = None) -> list[str]:
    "Title and abstract of the sample corpus's papers, as SPECTER2 reads them."
    return make_texts(read_papers(sample_papers()).table(limit=limit), separator="[SEP]")


def make_vocabulary() -> list[str]:
    """Train WordPiece's pieces on the sample corpus; the same ones every time.

    The library's own trainer for WordPiece breaks ties by chance, so its BPE trainer finds the pieces; each is then
    allowed at the beginning of a word and, as `##piece`, further on."""
    words = Tokenizer(BPE())
    words.normalizer = BertNormalizer(lowercase=True)
    words.pre_tokenizer = BertPreTokenizer()
    texts = [text.replace("[SEP]", " ") for text in sample_texts()]
    words.train_from_iterator(texts, BpeTrainer(vocab_size=4000, show_progress=False))
    pieces = sorted(words.get_vocab())
    return [*SPECIAL_TOKENS, *pieces, *(f"##{piece}" for piece in pieces)]


def make_base(
    folder: Path,  # made if need be
    n_layers: int = 12,  # SPECTER2's
    hidden_size: int = 768,  # SPECTER2's; a multiple of 64
    seed: int = 0,  # another seed, other weights
) -> Path:  # the folder
    "Write a BERT of SPECTER2's shape, or of a smaller one, as transformers saves it."
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(make_vocabulary()) + "\n", encoding="utf-8")
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"), do_lower_case=True, model_max_length=N_POSITIONS)
    tokenizer.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        num_hidden_layers=n_layers,
        num_attention_heads=hidden_size // 64,
        intermediate_size=4 * hidden_size,
        max_position_embeddings=N_POSITIONS,
        initializer_range=hidden_size**-0.5,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertModel(config)
    spread_texts(model)
    model.save_pretrained(folder)
    return folder


def spread_texts(model: BertModel) -> None:
    """Scale fresh weights so that what a text says comes through to [CLS].

    Fresh weights leave every text nearly the same [CLS] vector (cosine 0.99), which would hide any mistake. Here words
    outweigh positions, attention chooses, and what the layers add stays small enough that tokens keep their own
    vectors and that a small numerical error stays small."""
    scales = {
        "word_embeddings": 20,
        "attention.self.query": 1.75,
        "attention.self.key": 1.75,
        "attention.output": 1.75 / model.config.num_hidden_layers**0.5,
        "output.dense": 0.2,  # of the feed-forward part: attention.output was matched before
    }
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if weights.ndim == 2:
                weights *= next((scale for part, scale in scales.items() if part in name), 1)


def make_adapter(
    base_folder: Path,  # from `make_base`
    folder: Path,  # made if need be
    seed: int = 1,  # another seed, another adapter
    safetensors: bool = True,  # adapter.safetensors; `False`: pytorch_adapter.bin, as SPECTER2's own are
    name: str = "[PRX]",  # what the adapter calls itself; SPECTER2's proximity adapter has this name
) -> Path:  # the folder
    "Write an adapter of SPECTER2's kind (Pfeiffer's, a sixteenth of the hidden size, ReLU) that changes every vector."
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertAdapterModel.from_pretrained(base_folder)
        model.config.name_or_path = "allenai/specter_plus_plus"  # what SPECTER2's adapters were trained on
        model.add_adapter(name, config="seq_bn")
        with torch.no_grad():
            for parameter_name, weights in model.named_parameters():
                if f"adapters.{name}." in parameter_name and weights.ndim == 2:
                    weights.normal_(std=weights.shape[1] ** -0.5 * model.config.num_hidden_layers**-0.25)
    model.save_adapter(str(folder), name, with_head=False, use_safetensors=safetensors)
    return folder
