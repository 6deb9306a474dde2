"""Measure what pre-training is worth, run by run, and write each run as a line of a file.

    OMP_NUM_THREADS=1 python tools/transfer.py nbs/foundations/transfer_runs.jsonl

A killed measurement goes on where it was. Hours of one thread in all; chapter 14b_transfer reads
the file. Its first line names test rows that `sftbook-zh` has read.
"""
import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from sftbook.core import cache_dir
from sftbook.foundations.encoder import save_encoder
from sftbook.foundations.pretraining import (
    blank_encoder, clean_pretraining_texts, embed_by_neighbours, look_at_neighbours, only_letters,
    pretraining_rows)
from sftbook.foundations.transfer import labelled_parts, right_answers, transfer_run
from sftbook.model import load_tokenizer

LADDERS = {"sftbook-zh": (2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3),
           "from scratch": (2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3),
           "BiLSTM-CRF": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)}
TRIED = slice(2, 6)  # of a ladder, at first; more where the best stands at an edge
SHORT = {"BiLSTM-CRF": slice(1, 5)}


def make_starts(folder):
    "What the systems start from: an encoder that has read nothing, vectors of characters."
    vectors = folder / "vectors.safetensors"
    starts = {"sftbook-zh": "sftbook-zh", "from scratch": str(folder / "scratch"),
              "BiLSTM-CRF": str(vectors)}
    if vectors.exists():
        return starts
    tokenizer = load_tokenizer("sftbook-zh")
    blank = look_at_neighbours(blank_encoder(tokenizer))
    save_encoder(folder / "scratch", blank, tokenizer)
    rows = pretraining_rows(tokenizer, clean_pretraining_texts()[0])
    drawn = np.random.default_rng(0).permutation(len(rows))[:12000]
    small = blank_encoder(tokenizer, 128, 1)
    embed_by_neighbours(small, [rows[i] for i in drawn], tokenizer.all_special_ids, size=0.3)
    table = small.bert.embeddings.word_embeddings.weight.detach().clone()
    save_file({"vectors": table}, vectors)
    return starts


def rows_read(corpus):
    "Test rows of 8 to 14 letters that stand whole in the text that the encoder has read."
    texts = clean_pretraining_texts(shortest=15)[0]
    stream = "\n".join(only_letters(t) for part in texts.values() for t in part)
    test = labelled_parts(corpus)["test"]
    rows = test["text"] if "text" in test.column_names else map("".join, test["tokens"])
    return [i for i, t in enumerate(map(only_letters, rows)) if 8 <= len(t) < 15 and t in stream]


class Runs:
    "A file of runs, a line each."
    def __init__(self, file, starts):
        self.file, self.starts = file, starts
        if not file.exists():
            read = {corpus: rows_read(corpus) for corpus in ("msra-ner", "zh-reviews")}
            file.write_text(json.dumps(dict(had_read=read)) + "\n")
        self.runs = [json.loads(line) for line in file.read_text().splitlines()[1:]]

    def find(self, **wanted):
        return [r for r in self.runs if all(r[k] == v for k, v in wanted.items())]

    def write(self, run):
        self.runs.append(run)
        with self.file.open("a") as out:
            out.write(json.dumps(run) + "\n")
        shown = {k: v for k, v in run.items() if k != "right"}
        print(*(f"{k} {v}" for k, v in shown.items()), flush=True)

    def tune(self, corpus, system, n, seed, rate):
        "A run and its model."
        began = time.perf_counter()
        tuned = transfer_run(corpus, self.starts[system], n, seed, rate)
        s = tuned.result.state
        run = dict(corpus=corpus, system=system, n=n, seed=seed, learning_rate=rate,
                   validation=round(s.best, 4), passes=len(s.evaluations),
                   seconds=round(time.perf_counter() - began))
        return run, tuned

    def judge(self, run, tuned):
        "Write a run with its answers to the test rows, the only time that they are asked for."
        test = labelled_parts(run["corpus"])["test"]
        self.write(run | dict(right=right_answers(tuned, test).T.tolist()))

    def rates(self, cell):
        "Rates still to be tried: four, and a neighbour of the best as long as it has only one."
        system = cell["system"]
        ladder = LADDERS[system]
        found = {r["learning_rate"]: r["validation"] for r in self.find(**cell, seed=0)}
        missing = [r for r in ladder[SHORT.get(system, TRIED)] if r not in found]
        if missing:
            return missing
        best = ladder.index(max(found, key=found.get))
        return [r for r in ladder[max(0, best - 1):best + 2] if r not in found]

    def measure(self, corpus, system, n, draws):
        "The rates on the first draw, the best of them on the others."
        cell, kept = dict(corpus=corpus, system=system, n=n), None
        while rates := self.rates(cell):
            run, tuned = self.tune(**cell, seed=0, rate=rates[0])
            of = self.find(**cell, seed=0)
            if run["validation"] > max([r["validation"] for r in of], default=-1):
                kept = run, tuned
            self.write(run | dict(right=None))
        best = max(self.find(**cell, seed=0), key=lambda r: r["validation"])
        rate = best["learning_rate"]
        for seed in range(draws):
            if any(r["right"] for r in self.find(**cell, seed=seed, learning_rate=rate)):
                continue
            if seed or kept is None or kept[0]["learning_rate"] != rate:
                kept = self.tune(**cell, seed=seed, rate=rate)
            self.judge(*kept)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("--corpora", nargs="+", default=["msra-ner", "zh-reviews"])
    parser.add_argument("--systems", nargs="+", default=list(LADDERS))
    parser.add_argument("--rows", nargs="+", type=int, default=[500, 2000], help="0: all")
    parser.add_argument("--draws", type=int, default=3)
    a = parser.parse_args()
    torch.set_num_threads(1)
    folder = cache_dir() / "transfer"
    runs = Runs(a.file, make_starts(folder))
    for n in a.rows:
        for corpus in a.corpora:
            for system in a.systems:
                if (corpus, system) != ("zh-reviews", "BiLSTM-CRF"):
                    runs.measure(corpus, system, n or None, a.draws)


if __name__ == "__main__":
    main()
