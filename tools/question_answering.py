"""Measure readers on questions that rules found in the help pages; each run is a line of a file.

    OMP_NUM_THREADS=1 python tools/question_answering.py nbs/tasks/question_answering_runs.jsonl

A run that stands in the file is not made again, and a run that was killed goes on from its last
checkpoint. Splits are by page; the threshold and the epoch come from the validation part, the test
part is asked once a run. Systems: minilm (English), sftbook-zh (Chinese), e5-small (both, its
vocabulary cut to the words of the rows), and two that learn nothing.
"""
import argparse
import shutil
import time
from pathlib import Path

import numpy as np
import torch

from sftbook.core import cache_dir, quiet
from sftbook.preprocessing.answer_spans import load_answer_spans
from sftbook.recorded import _find, recorded
from sftbook.tasks.protocol import fine_tune, predict
from sftbook.tasks.question_answering import (
    QuestionAnswering, answer_report, choose_null_threshold, found_texts, sentence_by_overlap)
from sftbook.trainer import TrainingConfig

SYSTEMS = {"en": ("overlap", "line after", "minilm", "e5-small"),
           "zh": ("overlap", "line after", "sftbook-zh", "e5-small")}
RATES = {"minilm": 2e-4, "e5-small": 1e-4, "sftbook-zh": 3e-4}
PARTS = {}


def parts(language):
    "The rows, loaded once."
    if language not in PARTS:
        PARTS[language] = load_answer_spans(language)
    return PARTS[language]


def some(rows, n, seed):
    "A few rows, drawn at random; all when there are fewer."
    drawn = np.random.default_rng(seed).permutation(len(rows))[:n or None]
    return rows.select(sorted(drawn.tolist()))


def trimmed(checkpoint, language):
    "A checkpoint whose vocabulary is cut to the words of the rows."
    from sftbook.vocabulary import trim_vocabulary
    folder = cache_dir() / "question_answering" / f"{checkpoint}-{language}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        texts = {t for part in parts(language).values() for c in ("question", "context")
                 for t in part[c]}
        trim_vocabulary(checkpoint, sorted(texts), folder)
    return str(folder)


def judged(found, rows, threshold):
    "What stands in the file of the test rows: scores, and what each row was worth."
    texts = found_texts(found, rows["context"], threshold)
    metrics = answer_report(texts, rows).metrics
    return {name: [m.value, m.low, m.high] for name, m in metrics.items()}


def details(found, rows):
    "Of each test row: rule, whether it has an answer, score, F1 of the mark."
    from sftbook.evaluation.generation import answer_f1
    marks = found_texts(found, rows["context"], -np.inf)
    kept = []
    for f, text, row in zip(found, marks, rows):
        there = row["answers"]["text"]
        worth = max((answer_f1(one, text) for one in there), default=0.)
        kept.append([row["rule"], int(bool(there)), round(f.score, 3), round(worth, 3)])
    return kept


def by_words(s):
    "The baselines: a threshold is all they learn."
    after = int(s["system"] == "line after")
    splits, found = parts(s["language"]), {}
    for name in ("validation", "test"):
        rows = splits[name]
        found[name] = [sentence_by_overlap(row["question"], row["context"], after) for row in rows]
    threshold = choose_null_threshold(found["validation"], splits["validation"])
    return dict(threshold=threshold, test=judged(found["test"], splits["test"], threshold),
                rows=details(found["test"], splits["test"]))


def trained(s):
    "Fine-tune on some rows, choose the threshold, judge once."
    splits, checkpoint = parts(s["language"]), s["system"]
    if checkpoint == "e5-small":
        checkpoint = trimmed(checkpoint, s["language"])
    rows = some(splits["train"], s["train_rows"], s["seed"])
    validation = some(splits["validation"], s["validation_rows"], 0)
    task = QuestionAnswering(checkpoint, max_length=s["max_length"], stride=s["stride"])
    config = TrainingConfig(
        learning_rate=s["learning_rate"], num_train_epochs=s["epochs"], seed=s["seed"],
        per_device_train_batch_size=s["batch_size"])
    place = cache_dir() / "question_answering" / "-".join(map(str, s.values())).replace("/", "_")
    began = time.process_time()
    tuned = fine_tune(task, rows, config=config, checkpoints=place, resume=place.exists())
    seconds = time.process_time() - began
    known = predict(task, tuned.model, validation)
    task.threshold = choose_null_threshold(known, validation)
    test = some(splits["test"], s["test_rows"], 0)
    found = predict(task, tuned.model, test)
    if s["seed"] == 0 and s["keep"]:
        from sftbook.tasks.saved_runs import save_run
        report = task.metrics(found, test)
        save_run(cache_dir() / "question_answering" / f"run-{s['language']}-{s['system']}", task,
                 tuned.model, report, overwrite=True)
    shutil.rmtree(place, ignore_errors=True)
    return dict(threshold=task.threshold, cut=tuned.truncated, trained_rows=len(rows),
                cpu_seconds=round(seconds), test=judged(found, test, task.threshold),
                validation=judged(known, validation, task.threshold), rows=details(found, test))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("--languages", nargs="+", default=["en", "zh"])
    parser.add_argument("--systems", nargs="+", default=None)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--train-rows", type=int, default=0, help="0: all")
    parser.add_argument("--validation-rows", type=int, default=0, help="0: all")
    parser.add_argument("--test-rows", type=int, default=0, help="0: all")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--keep", action="store_true", help="save the runs of seed 0")
    a = parser.parse_args()
    torch.set_num_threads(1)
    for seed in range(a.seeds):
        for language in a.languages:
            for system in a.systems or SYSTEMS[language]:
                if system not in SYSTEMS[language]:
                    continue
                s = dict(language=language, system=system)
                learns = system in RATES
                if not learns and seed:
                    continue
                if learns:
                    s |= dict(train_rows=a.train_rows, epochs=a.epochs, seed=seed,
                              learning_rate=RATES[system], batch_size=8, max_length=256,
                              stride=64, validation_rows=a.validation_rows,
                              test_rows=a.test_rows, keep=a.keep)
                done = _find(a.file, s) is not None
                with quiet():
                    r = recorded(a.file, s, lambda s=s: (trained if s["system"] in RATES
                                                         else by_words)(s))
                found = {k: [round(v, 3) for v in three if v is not None]
                         for k, three in r.result["test"].items()}
                print("found" if done else f"{r.seconds:.0f} s", s, found, flush=True)


if __name__ == "__main__":
    main()
