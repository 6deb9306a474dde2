"""What texts without labels are worth: four ways to train from a few labelled rows of BBC News, each judged on all test rows.

python tests/benchmarks/self_training.py --column title --per-class 5 25 --draws 6
python tests/benchmarks/self_training.py --column text --per-class 5 --draws 3 --max-length 128
"""
import argparse
import copy

import numpy as np

from sftbook.core import quiet
from sftbook.corpora import load_corpus
from sftbook.evaluation.uncertainty import mean_interval
from sftbook.preprocessing.rows import deduplicate, split_rows
from sftbook.tasks.protocol import fine_tune, predict
from sftbook.tasks.text_classification import (TextClassification, fit_head, pooled_features,
                                               pseudo_labels)
from sftbook.trainer import TrainingConfig


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--column", choices=["title", "text"], default="title")
    parser.add_argument("--per-class", type=int, nargs="+", default=[5, 25])
    parser.add_argument("--draws", type=int, default=6)
    parser.add_argument("--max-length", type=int, default=32)
    args = parser.parse_args()

    rows = load_corpus("bbc-news")
    if args.column == "title":
        rows = rows.remove_columns("text").rename_column("title", "text")
    parts = split_rows(deduplicate(rows)[0], seed=0)
    train, test = parts["train"], parts["test"]
    task = TextClassification.from_rows(train, max_length=args.max_length)
    frozen = task.init_model()
    features, labels, truth = pooled_features(task, frozen, train), np.array(train["label"]), np.array(test["label"])

    def accuracy(model):
        return float((predict(task, model, test).labels == truth).mean())

    def with_head(chosen, known):
        return fit_head(copy.deepcopy(frozen), features[chosen], known.tolist())

    for n in args.per_class:
        found = {name: [] for name in ("head", "head, self-trained", "fine-tuned on labelled rows", "fine-tuned on both")}
        for seed in range(args.draws):
            rng = np.random.default_rng((seed, n))
            few = np.concatenate([rng.choice(np.flatnonzero(labels == c), n, replace=False) for c in range(len(task.labels))])
            rest = np.setdiff1d(np.arange(len(labels)), few)
            own = pseudo_labels(features[few], labels[few], features[rest])
            both = np.concatenate([few, rest[own >= 0]])
            known = np.concatenate([labels[few], own[own >= 0]])
            head, trained = with_head(few, labels[few]), with_head(both, known)
            with quiet():
                union = train.select(both).remove_columns("label").add_column("label", known.tolist(), feature=train.features["label"])
            small = TrainingConfig(learning_rate=1e-4, num_train_epochs=4, per_device_train_batch_size=8, seed=seed, warmup_steps=0)
            large = TrainingConfig(learning_rate=5e-5, num_train_epochs=1, seed=seed)
            scores = [accuracy(head), accuracy(trained), accuracy(fine_tune(task, train.select(few), config=small, model=copy.deepcopy(head)).model),
                      accuracy(fine_tune(task, union, config=large, model=copy.deepcopy(trained)).model)]
            for name, score in zip(found, scores, strict=True):
                found[name].append(score)
            right = (own[own >= 0] == labels[rest[own >= 0]]).mean()
            print(f"{args.column}, {n} a class, draw {seed}: {', '.join(f'{s:.1%}' for s in scores)}; {(own >= 0).sum()} own labels, {right:.0%} right", flush=True)
        for name, scores in found.items():
            print(f"{n:4} a class, {name:28} {mean_interval(scores) if len(scores) > 1 else scores[0]}")


if __name__ == "__main__":
    main()
