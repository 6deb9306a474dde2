"""Try additions to pre-training on a proxy, and write each judgement as a line of a file.

    OMP_NUM_THREADS=1 python tools/pretrain_trials.py runs/trials

Every system reads the same rows, in the same order, for as many tokens; then validation rows judge
it. Texts, and the teacher's vectors of the texts that are read, are made if they are not there. A
killed trial goes on where it was. Chapter 14d_pretraining_stages reads the file.
"""
import argparse
import json
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from pretrain import prepare_start, Report
from sklearn.linear_model import LogisticRegressionCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sftbook.core import read_json
from sftbook.evaluation.entities import entity_f1
from sftbook.evaluation.uncertainty import mean_interval
from sftbook.foundations.pretraining_stages import Material, pretrain_stage, teacher_vectors
from sftbook.foundations.richer_pretraining import Stage
from sftbook.foundations.transfer import first_rows, labelled_parts, right_answers, transfer_run
from sftbook.model import load_model, load_tokenizer

PLAIN = Stage("base", mask_rate=0.2, decay=True, warmup_steps=300, whole_words=False)
SYSTEMS = {
    "base": PLAIN,
    "words": replace(PLAIN, name="words", whole_words=True),
    "words+tags": replace(PLAIN, name="words+tags", whole_words=True, tag_weight=0.5),
    "words+vectors": replace(PLAIN, name="words+vectors", whole_words=True, vector_weight=1.),
    "all": replace(PLAIN, name="all", whole_words=True, tag_weight=0.5, vector_weight=1.)}
RATES = {"zh-reviews": (1e-4, 2e-4), "msra-ner": (2e-4, 5e-4)}
STOP = 300  # validation rows that say when to stop; those behind them judge


def some_texts(material, tokens, seed):
    "Material with blocks of texts drawn until there are enough tokens, the same for all systems."
    lengths, rng = material.tokens.lengths(), np.random.default_rng(seed)
    blocks = np.array_split(np.arange(len(lengths)), max(1, len(lengths) // 16))
    kept, total = [], 0
    for block in rng.permutation(len(blocks)):
        if total >= tokens:
            break
        kept.append(blocks[block])
        total += int(lengths[blocks[block]].sum())
    return np.sort(np.concatenate(kept))


def cut_material(material, texts, said):
    "The same with these texts alone, and their vectors."
    t = material.tokens
    places = np.concatenate([np.arange(*t.starts[i:i + 2]) for i in texts])
    starts = np.concatenate([[0], np.cumsum(t.lengths()[texts])])
    tokens = type(t)(t.input_ids[places], t.begins[places], t.tags[places], starts)
    about = material.about | dict(text=f"{material.about['text']}, {len(texts)} of its texts")
    cut = Material(material.folder, [material.texts[i] for i in texts], tokens, material.judged,
                   about)
    return cut, None if said is None else said[texts]


def features(folder, texts):
    "Means of the tokens of texts, as a frozen encoder gives them."
    tokenizer, model = load_tokenizer(folder), load_model("AutoModel", folder).eval()
    found = []
    for start in range(0, len(texts), 32):
        batch = tokenizer(texts[start:start + 32], padding=True, truncation=True, max_length=128,
                          return_tensors="pt")
        with torch.inference_mode():
            hidden = model(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None]
        found.append(((hidden * mask).sum(1) / mask.sum(1)).numpy())
    return np.concatenate(found)


def judging_rows(corpus, n):
    "Validation rows that have not said when to stop."
    rows = labelled_parts(corpus)["validation"].shuffle(seed=0)
    return rows.select(range(STOP, min(STOP + n, len(rows))))


def frozen_score(folder, draw, n, judging):
    "Accuracy of a linear classifier on frozen means."
    train = first_rows(labelled_parts("zh-reviews")["train"], n, draw)
    classifier = LogisticRegressionCV(Cs=np.logspace(-4, 1, 6), cv=5, max_iter=500)
    linear = make_pipeline(StandardScaler(), classifier)
    linear.fit(features(folder, train["text"][:]), train["label"][:])
    return float(linear.score(features(folder, judging["text"][:]), judging["label"][:]))


def tuned_score(corpus, folder, draw, n, judging):
    "Accuracy or F1 after fine-tuning, with the better of the rates on the rows that stop it."
    runs = [transfer_run(corpus, folder, n, draw, rate, STOP) for rate in RATES[corpus]]
    best = max(runs, key=lambda run: run.result.state.best)
    right = right_answers(best, judging)
    return float(right.mean() if right.shape[1] == 1 else entity_f1(right))


class Trials:
    "A file of judgements, a line each."
    def __init__(self, file):
        self.file = file
        lines = file.read_text().splitlines() if file.exists() else []
        self.lines = [json.loads(line) for line in lines]

    def measure(self, key, compute, *arguments):
        "Compute a score unless it is there."
        if any(all(line[k] == v for k, v in key.items()) for line in self.lines):
            return
        began = time.perf_counter()
        score = round(compute(*arguments), 4)
        line = key | dict(score=score, seconds=round(time.perf_counter() - began))
        self.lines.append(line)
        with self.file.open("a") as out:
            out.write(json.dumps(line) + "\n")
        print(*(f"{k} {v}" for k, v in line.items()), flush=True)

    def table(self):
        "Means, and differences to the base, draw by draw."
        found = defaultdict(dict)
        for line in self.lines:
            found[line["judge"], line["system"]][line["seed"], line["draw"]] = line["score"]
        for (judge, system), scores in found.items():
            base = found.get((judge, "base"), {})
            gains = [scores[draw] - base[draw] for draw in scores if draw in base]
            gain = "" if len(gains) < 2 or system == "base" else mean_interval(gains, unit="")
            print(f"{judge:12} {system:14} {np.mean(list(scores.values())):.4f}  {gain}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--file", type=Path, default=Path("nbs/foundations/pretrain_trials.jsonl"))
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS))
    parser.add_argument("--start", help="a checkpoint; an encoder that has read nothing by default")
    parser.add_argument("--tokens", type=float, default=8e6, help="that each system reads")
    parser.add_argument("--seed", type=int, default=0, help="of pre-training: texts, order, masks")
    parser.add_argument("--draws", type=int, default=3, help="of labelled rows")
    parser.add_argument("--rows", type=int, default=500, help="labelled rows of a draw")
    parser.add_argument("--judging", type=int, default=1000, help="validation rows that judge")
    parser.add_argument("--table", action="store_true", help="print what is there, measure nothing")
    a = parser.parse_args()
    trials = Trials(a.file)
    if a.table:
        return trials.table()
    torch.set_num_threads(1)
    material = prepare_start(a.folder)
    texts = some_texts(material, a.tokens, a.seed)
    said = None
    if any(SYSTEMS[name].vector_weight for name in a.systems):
        said = teacher_vectors(material.texts, a.folder / "teacher.npy", which=texts,
                               report=Report())
    material, said = cut_material(material, texts, said)
    judging = {corpus: judging_rows(corpus, a.judging) for corpus in RATES}
    for name in a.systems:
        stage = replace(SYSTEMS[name], name=f"{name}-{a.seed}", seed=a.seed)
        home = pretrain_stage(a.folder, stage, material, a.start or a.folder / "start", said)
        key, folder = dict(system=name, seed=a.seed), str(home / "encoder")
        last = read_json(home / "log.json")["evaluations"][-1]
        trials.measure(key | dict(judge="held-out loss", draw=0), float, last["loss"])
        for draw in range(a.draws):
            drawn, reviews = key | dict(draw=draw), judging["zh-reviews"]
            trials.measure(drawn | dict(judge="frozen"), frozen_score, folder, draw, a.rows,
                           reviews)
            for corpus, rows in judging.items():
                trials.measure(drawn | dict(judge=f"tuned, {corpus}"), tuned_score, corpus, folder,
                               draw, a.rows, rows)
    trials.table()


if __name__ == "__main__":
    main()
