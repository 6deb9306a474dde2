"""Search the help pages in several ways, and write each way as a line of a file.

    OMP_NUM_THREADS=1 python tools/retrieval.py nbs/tasks/retrieval_runs.jsonl --work FOLDER
    ... --only en zh across      some of the collections; en-all is all English passages
    ... --pairs 1500 --length 48 how much of the training pairs is read

Vectors, checkpoints and trained models are kept in FOLDER, so a killed measurement goes on where
it was, and lines that are there are not made again. Weights of a sum are chosen on the questions
of the validation pages; the questions of the test pages are asked once, at the end of a line.
"""
import argparse
import json
import time
from pathlib import Path

import numpy as np

from sftbook.autotune import machine_name
from sftbook.evaluation.generation import _mean_score, score_interval, score_test
from sftbook.evaluation.reports import Report
from sftbook.evaluation.retrieval import precision_at, reciprocal_rank_at
from sftbook.help_sections import load_help_sections
from sftbook.settings import TrainingConfig
from sftbook.tasks.keyword_search import (
    KeywordIndex, judge_searches, passage_title, passage_words, search_words)
from sftbook.tasks.protocol import fine_tune
from sftbook.tasks.retrieval import Retrieval, embed, help_pairs, passage_text
from sftbook.tasks.saved_runs import load_run, save_run
from sftbook.tasks.two_step_search import across_questions, best_weights, weighted_sum
from sftbook.vocabulary import trim_vocabulary

STEMS = {"en": "english", "zh": None}
PREFIXES = {"minilm": ("", ""), "e5-small": ("query: ", "passage: ")}


class Collection:
    "Passages, and the questions of the validation and of the test pages."
    def __init__(self, name):
        self.name, passage_language = name, "zh" if name == "zh" else "en"
        self.language = passage_language
        self.question_language = "zh" if name in ("zh", "across") else "en"
        passages, questions = load_help_sections(passage_language)
        if name == "across":
            questions = across_questions()
        wanted = {i for ids in questions["passage_ids"] for i in ids}
        kept = [i for i, key in enumerate(passages["passage_id"])
                if name == "en-all" or key in wanted]
        self.passages = passages.select(kept)
        self.ids = self.passages["passage_id"][:]
        held_out = [i for i, part in enumerate(questions["part"]) if part != "train"]
        self.questions = questions.select(held_out)
        self.parts = np.array(self.questions["part"][:])

    def values(self, scores, part):
        "Of each question: whether the first passage is right, and its reciprocal rank."
        rows = np.flatnonzero(self.parts == part)
        judged = judge_searches(self.questions.select(rows), self.ids, scores[rows], 20)
        return {"R@1": [precision_at(j, 1) for j in judged],
                "MRR@10": [reciprocal_rank_at(j, 10) for j in judged]}

    def right(self, rows):
        places = {name: i for i, name in enumerate(self.ids)}
        return [[places[name] for name in self.questions[int(i)]["passage_ids"]] for i in rows]

    def pages(self, part):
        return self.questions.select(np.flatnonzero(self.parts == part))["page"][:]


class Vectors:
    "Vectors of a model, read from the folder where they are known."
    def __init__(self, work, name, start):
        self.work, self.name, self.start, self.loaded = work, name, start, None

    def model(self):
        if self.loaded is None:
            self.loaded = self.start()
        return self.loaded

    def of(self, name, texts, kind):
        file = self.work / f"{self.name}-{name}.npy"
        if not file.exists():
            task, model = self.model()
            begun = time.process_time()
            found = embed(task, model, texts, kind)
            np.save(self.work / "part.npy", found)
            (self.work / "part.npy").rename(file)
            print(f"{file.stem}: {time.process_time() - begun:.0f} s", flush=True)
        found = np.load(file)
        assert len(found) == len(texts), f"{file} is of other texts"
        return found

    def scores(self, c, read, titles):
        "Cosines with what is read of each passage, and with its title alone."
        asked = self.of(f"{c.name}-questions", c.questions["question"][:], "question")
        whole = self.of(f"{c.name}-passages", list(map(read, c.passages)), "passage")
        if not titles:
            return {"passages": asked @ whole.T}
        heads = self.of(f"{c.name}-titles", list(map(passage_title, c.passages)), "passage")
        return {"passages": asked @ whole.T, "titles": asked @ heads.T}


def word_scores(c, titles, stem):
    index = KeywordIndex([passage_words(row, titles, stem) or ["-"] for row in c.passages])
    return np.stack([index.scores(search_words(q, stem)) for q in c.questions["question"]])


def plain(checkpoint, length):
    def start():
        question, passage = PREFIXES["e5-small" if "e5" in str(checkpoint) else "minilm"]
        task = Retrieval(str(checkpoint), length, question_prefix=question,
                         passage_prefix=passage)
        return task, task.init_model().eval()
    return start


def trimmed_e5(work):
    "The multilingual encoder with the words of the help pages only."
    if not (work / "e5-trim").exists():
        texts = []
        for language in ("en", "zh"):
            passages, questions = load_help_sections(language)
            texts += [f"query: {text}" for text in questions["question"]]
            texts += [f"passage: {passage_text(row)}" for row in passages]
        trim_vocabulary("e5-small", texts, work / "e5-trim")
    return work / "e5-trim"


def trained(work, o, seed):
    "MiniLM, trained on pairs of the training pages; a killed training goes on."
    def start():
        folder = work / f"trained-{o.pairs}-{o.length}-{seed}"
        if not folder.exists():
            task = Retrieval("minilm", o.length)
            rows = help_pairs("en", "train").shuffle(seed=seed)
            rows = rows.select(range(min(o.pairs, len(rows))))
            config = TrainingConfig(learning_rate=o.rate, num_train_epochs=1, seed=seed,
                                    per_device_train_batch_size=32, save_steps=8)
            tuned = fine_tune(task, rows, config=config, resume=True,
                              checkpoints=work / f"{folder.name}-checkpoints")
            report = Report("retrieval", len(rows), {}, extra=tuned.result.to_dict())
            save_run(folder, task, tuned.model, report)
            print(folder.name, tuned.result.to_dict(), flush=True)
        run = load_run(folder)
        return run.task, run.model
    return start


def systems(c, work, o):
    "(name, seed, scores of its parts, what is summed) of each way to search."
    stem = STEMS[c.language] if c.question_language == c.language else None
    words = {"words": word_scores(c, 3, stem)}
    yield "BM25, text only", None, {"words": word_scores(c, 0, None)}
    yield "BM25, titles and stems" if stem else "BM25, titles", None, words
    english = c.name in ("en", "en-all")
    if english:
        vectors = {"MiniLM": (None, Vectors(work, "minilm", plain("minilm", 96)))}
        for seed in o.seeds:
            name = f"trained-{o.pairs}-{o.length}-{seed}"
            vectors[f"MiniLM, {o.pairs:,} pairs"] = seed, Vectors(work, name,
                                                                  trained(work, o, seed))
    else:
        vectors = {"e5-small": (None, Vectors(work, "e5", plain(trimmed_e5(work), 96)))}
    read = passage_title if c.name == "across" else passage_text
    for name, (seed, model) in vectors.items():
        found = model.scores(c, read, english)
        yield name, seed, {"passages": found["passages"]}
        yield f"{name} + words", seed, {"passages": found["passages"], **words}
        if english:
            yield f"{name} + titles + words", seed, found | words


def intervals(c, values, part):
    "Both numbers, with intervals by page."
    found = {}
    for name, each in values.items():
        i = score_interval(_mean_score(name, each, "expected"), c.pages(part))
        found[name] = [round(v, 4) for v in (i.value, i.low, i.high)]
    return found


def differences(c, ours, theirs):
    "What is gained over a search by words, on the test pages, with intervals by page and p."
    found = {}
    for name in ours:
        test = score_test(_mean_score(name, ours[name], "expected"),
                          _mean_score(name, theirs[name], "expected"), c.pages("test"))
        d = test.difference
        found[f"{name} minus BM25"] = [round(v, 4) for v in (d.value, d.low, d.high, test.p_value)]
    return found


def measure(c, o, done):
    "Every system of a collection that is not in the file yet."
    words = None
    for name, seed, parts in systems(c, o.work, o):
        begun = time.process_time()
        rows = np.flatnonzero(c.parts == "validation")
        weights = best_weights({k: s[rows] for k, s in parts.items()}, c.right(rows))
        scores = weighted_sum(parts, weights)
        if name.startswith("BM25, titles"):
            words = c.values(scores, "test")
        if (c.name, name, seed) in done:
            continue
        ours = c.values(scores, "test")
        line = dict(collection=c.name, system=name, seed=seed, passages=len(c.ids),
                    questions=len(ours["R@1"]), weights=weights,
                    validation=intervals(c, c.values(scores, "validation"), "validation"),
                    **intervals(c, ours, "test"))
        if words is not None and not name.startswith("BM25"):
            line |= differences(c, ours, words)
        line |= dict(seconds=round(time.process_time() - begun, 1), processor=machine_name())
        with open(o.file, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        print(json.dumps(line, ensure_ascii=False), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=["en", "zh", "across", "en-all"])
    parser.add_argument("--seeds", nargs="*", type=int, default=[1])
    parser.add_argument("--pairs", type=int, default=768)
    parser.add_argument("--length", type=int, default=48)
    parser.add_argument("--rate", type=float, default=5e-5)
    parser.add_argument("--train-only", action="store_true")
    o = parser.parse_args()
    o.work.mkdir(parents=True, exist_ok=True)
    if o.train_only:
        for seed in o.seeds:
            trained(o.work, o, seed)()
        return
    done = set()
    if o.file.exists():
        lines = map(json.loads, o.file.read_text(encoding="utf-8").splitlines())
        done = {(line["collection"], line["system"], line["seed"]) for line in lines}
    for name in o.only:
        measure(Collection(name), o, done)


if __name__ == "__main__":
    main()
