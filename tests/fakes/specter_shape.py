"""Models in SPECTER2's shape: a BERT with a vocabulary of its own and an adapter for it, with seeded random weights."""

import json
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
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


# of SPECTER2's adapters, as their files have it: Pfeiffer's form, a sixteenth of the hidden size, ReLU
BOTTLENECK = {
    "adapter_residual_before_ln": False,
    "inv_adapter": None,
    "is_parallel": False,
    "leave_out": [],
    "ln_after": False,
    "ln_before": False,
    "mh_adapter": False,
    "non_linearity": "relu",
    "original_ln_after": True,
    "original_ln_before": True,
    "output_adapter": True,
    "phm_layer": False,
    "reduction_factor": 16,
    "residual_before_ln": True,
    "scaling": 1.0,
    "use_gating": False,
}


def make_adapter(
    base_folder: Path,  # from `make_base`
    folder: Path,  # made if need be
    seed: int = 1,  # another seed, another adapter
    safetensors: bool = True,  # adapter.safetensors; `False`: pytorch_adapter.bin, as SPECTER2's own are
    name: str = "[PRX]",  # what the adapter calls itself; SPECTER2's proximity adapter has this name
) -> Path:  # the folder
    "Write an adapter of SPECTER2's kind that changes every vector; `tests/encoders/test_adapters.py` checks the form."
    folder.mkdir(parents=True, exist_ok=True)
    base = json.loads((base_folder / "config.json").read_text())
    hidden_size, n_layers = base["hidden_size"], base["num_hidden_layers"]
    bottleneck = hidden_size // BOTTLENECK["reduction_factor"]
    generator = torch.Generator().manual_seed(seed)

    def random(n_rows: int, n_columns: int) -> torch.Tensor:
        return torch.randn(n_rows, n_columns, generator=generator) * n_columns**-0.5 * n_layers**-0.25

    weights = {}
    for layer in range(n_layers):
        prefix = f"bert.encoder.layer.{layer}.output.adapters.{name}"
        weights[f"{prefix}.adapter_down.0.weight"] = random(bottleneck, hidden_size)
        weights[f"{prefix}.adapter_down.0.bias"] = torch.zeros(bottleneck)
        weights[f"{prefix}.adapter_up.weight"] = random(hidden_size, bottleneck)
        weights[f"{prefix}.adapter_up.bias"] = torch.zeros(hidden_size)
    settings = {
        "config": BOTTLENECK,
        "hidden_size": hidden_size,
        "model_class": "BertAdapterModel",
        "model_name": "allenai/specter_plus_plus",  # what SPECTER2's adapters were trained on
        "model_type": "bert",
        "name": name,
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2))
    if safetensors:
        save_file(weights, folder / "adapter.safetensors", {"format": "pt"})
    else:
        torch.save(weights, folder / "pytorch_adapter.bin")
    return folder


def load_with_adapter(
    base_folder: Path,  # from `make_base`
    folder: Path,  # from `make_adapter`
) -> BertModel:  # with the adapter in every layer, in evaluation mode
    """Load a base and put an adapter into it by hand, apart from the package's own code.

    What this computes is what the package `adapters` does: `tests/encoders/test_adapters.py` holds vectors of its."""
    model = BertModel.from_pretrained(base_folder)
    settings = json.loads((folder / "adapter_config.json").read_text())
    safe = folder / "adapter.safetensors"
    weights = load_file(safe) if safe.exists() else torch.load(folder / "pytorch_adapter.bin", weights_only=True)
    for number, layer in enumerate(model.encoder.layer):
        prefix = f"bert.encoder.layer.{number}.output.adapters.{settings['name']}."
        bottleneck = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        layer.output.forward = partial(_end_layer, layer.output, bottleneck)
    return model.eval()


def _end_layer(
    output: torch.nn.Module, weights: dict[str, torch.Tensor], hidden: torch.Tensor, before: torch.Tensor
) -> torch.Tensor:
    "Compute the end of a BERT layer with Pfeiffer's adapter in it."
    feed_forward = output.dense(hidden)
    down = output.LayerNorm(feed_forward + before) @ weights["adapter_down.0.weight"].T
    up = torch.relu(down + weights["adapter_down.0.bias"]) @ weights["adapter_up.weight"].T
    return output.LayerNorm(up + weights["adapter_up.bias"] + feed_forward + before)
