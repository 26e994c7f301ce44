"""A tiny set in BEIR's layout, of the sample corpus, with queries and judgments written for the project."""

import csv
import json
from pathlib import Path

from arxiv_embeddings.papers.corpus import sample_papers

# text of a query -> ids of relevant papers of the sample corpus with their degree of relevance
JUDGED = {
    "browser add-ons that become malicious after an update": {"0000.00001": 2, "0000.00040": 2, "0000.00004": 0},
    "planetesimals formed by the streaming instability": {"0000.00044": 2, "0000.00100": 2},
    "quantum error correction with erasure flags": {"0000.00066": 2, "0000.00109": 2},
    "oceans on planets that always show one side to their star": {"0000.00065": 2, "0000.00137": 2},
    "key distribution from a small satellite": {"0000.00076": 2, "0000.00050": 1},
    "small planets of cool stars": {"0000.00118": 2, "0000.00121": 1, "0000.00087": 0},
}


def write_beir(folder: Path) -> Path:
    "Write `corpus.jsonl`, `queries.jsonl` and `qrels/test.tsv`; return the folder."
    (folder / "qrels").mkdir(parents=True)
    with open(sample_papers(), encoding="utf-8", newline="") as stream:
        papers = list(csv.DictReader(stream))
    corpus = [
        {"_id": paper["paper_id"], "title": paper["title"], "text": paper["abstract"], "metadata": {}}
        for paper in papers
    ]
    queries = [{"_id": f"q{number}", "text": text, "metadata": {}} for number, text in enumerate(JUDGED)]
    for name, rows in (("corpus", corpus), ("queries", queries)):
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    judged = [
        f"q{number}\t{paper_id}\t{score}\n"
        for number, papers in enumerate(JUDGED.values())
        for paper_id, score in papers.items()
    ]
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(judged))
    return folder
