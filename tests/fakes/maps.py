"""Papers of a map, made up: places in clusters, titles of random words, and texts that try to be markup."""

import numpy as np

from arxiv_embeddings.explore.labels import Label
from arxiv_embeddings.explore.map import LegendEntry, MapContent
from arxiv_embeddings.explore.plots import COLORS

STARTS = "deep graph learn net quant cod bound optim secur robot lang data wave field proof"
WORDS = [start + end for start in STARTS.split() for end in ("ing", "ed", "ers", "ity", "ation", "ic", "al", "ous")]
HOSTILE = [
    "<script>window.hacked = 1</script>",
    "</script><script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    "<!-- <script> a comment that does not end",
    "a line\u2028and another\u2029and a quote \" ' ` ${window.hacked = 1} \\",
    "&lt;b&gt; & &amp; <b>bold</b>",
    "@SCRIPT@ @TEXTS@ \\g<1>",
]


def make_content(n_papers: int, seed: int = 0, k: int | None = 10) -> MapContent:  # `k`: neighbors; `None`: none
    "A map whose last paper lies alone in a corner, and whose first papers have hostile titles."
    generator = np.random.default_rng(seed)
    cluster = generator.integers(0, 40, n_papers)
    centers = generator.normal(scale=3, size=(40, 2))
    places = (centers[cluster] + generator.normal(scale=0.35, size=(n_papers, 2))).astype(np.float32)
    places[-1] = 12, -12
    titles = [" ".join(words) for words in np.array(WORDS)[generator.integers(0, len(WORDS), (n_papers, 9))]]
    titles[: len(HOSTILE)] = HOSTILE[:n_papers]
    group_of = (cluster % 8).astype(np.uint8)
    names = [f"cs.{letters}" for letters in ("CL", "CV", "LG", "RO", "CR", "DS", "NI", "LO")]
    counts = np.bincount(group_of, minlength=8).tolist()
    dark = [*COLORS[:7], "#F2F2F2"]
    return MapContent(
        papers={
            "paper_id": [f"{1501 + row // 99_999:04}.{row % 99_999 + 1:05}" for row in range(n_papers)],
            "title": titles,
            "authors": [f"Ada {WORDS[row % len(WORDS)].title()}, Émile Zoë" for row in range(n_papers)],
            "categories": [names[number] for number in group_of],
        },
        places=places,
        years=generator.integers(1999, 2020, n_papers),
        groups=[LegendEntry(*one) for one in zip(names, [[name] for name in names], counts, COLORS, dark, strict=True)],
        group_of=group_of,
        labels=[Label(f"region {number}", *centers[number].tolist(), number // 14, 1) for number in range(40)],
        neighbors=None if k is None else generator.integers(0, n_papers, (n_papers, k)),
        colored_by="primary_category",
        title=f"Map of {n_papers:,} papers",
        about={"layout": "made up", "trustworthiness": "0.912"},
    )
