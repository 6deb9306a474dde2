"""How fast is our trainer beside transformers.Trainer? Same rows, model, epochs, batch size and learning rate, in one run, in turns.

    python tests/benchmarks/train_speed.py [--workload articles|ragged|titles] [--rows 64] [--rounds 3]

Prints rows/s (median and range over the rounds), the ratio of each round, accuracy with its interval, and MFU. `--ablation` adds runs of
ours with one property switched off each.
"""
import argparse
import contextlib
import statistics
import tempfile
import time
from unittest.mock import patch

import numpy as np
import torch

from sftbook.core import hardware, matmul_ceiling, pick_dtype, quiet
from sftbook.corpora import load_corpus
from sftbook.evaluation.uncertainty import bootstrap_interval
from sftbook.model import training_flops
from sftbook.preprocessing.copies import duplicate_clusters
from sftbook.preprocessing.rows import deduplicate, split_rows
from sftbook.tasks.protocol import predict
from sftbook.tasks.text_classification import TextClassification
from sftbook.trainer import Trainer, TrainingConfig

SIZES = {"articles": (256, 64), "ragged": (128, 512), "titles": (32, 1000)}  # tokens, rows


def shorten(text, index):
    "The first words of a text; how many is drawn per row, about 20 on average and 100 at most."
    words = text.split()
    return " ".join(words[: int(np.clip(np.random.default_rng(index).lognormal(2.8, 0.7), 3, 100))])


def make_rows(workload, count):
    "Training rows and test rows of a workload, from the leak-free split of BBC News."
    rows, _ = deduplicate(load_corpus("bbc-news"))
    splits = split_rows(rows, duplicate_clusters(rows["text"]))
    change = {"articles": lambda r, i: {"text": r["text"]}, "ragged": lambda r, i: {"text": shorten(r["body"], i)}, "titles": lambda r, i: {"text": r["title"]}}
    with quiet():
        train, test = (splits[name].map(change[workload], with_indices=True) for name in ("train", "test"))
    return train.shuffle(seed=0).select(range(min(count, len(train)))), test


def fresh_model(task, plain_dropout):
    torch.manual_seed(0)
    with quiet():
        model = task.init_model()
    if plain_dropout:  # as the checkpoint has it, and as transformers would train it
        for layer in model.bert.encoder.layer:
            layer.attention.self.dropout.p = 0.1
    return model


def with_transformers(task, features, config, bf16):
    "transformers.Trainer as it comes: random order, padded to the longest row of each batch."
    import transformers

    model = fresh_model(task, plain_dropout=True)
    with tempfile.TemporaryDirectory() as folder, quiet():
        settings = transformers.TrainingArguments(
            folder, learning_rate=config.learning_rate, num_train_epochs=config.num_train_epochs, per_device_train_batch_size=config.per_device_train_batch_size, weight_decay=config.weight_decay,
            warmup_steps=config.warmup_steps, max_grad_norm=config.max_grad_norm, seed=config.seed, bf16=bf16, save_strategy="no", logging_strategy="no", report_to="none", disable_tqdm=True,
            use_cpu=not torch.cuda.is_available())
        trainer = transformers.Trainer(model, settings, train_dataset=features, data_collator=transformers.DataCollatorWithPadding(task.tokenizer))
        trainer.remove_callback(transformers.PrinterCallback)
        start = time.perf_counter()
        trainer.train()
    return model, time.perf_counter() - start


def with_ours(task, features, config, **_):
    model = fresh_model(task, plain_dropout=False)
    start = time.perf_counter()
    Trainer(model, task.loss, task.collate, config).fit(features)
    return model, time.perf_counter() - start


@contextlib.contextmanager
def without(name):
    "Switch one property of ours off."
    from sftbook import plan, trainer

    def random_batches(lengths, size, *, seed, epoch):
        order = np.random.default_rng((seed, epoch)).permutation(len(lengths)).tolist()
        return [order[i : i + size] for i in range(0, len(order), size)]

    module, other = {
        "use_byte_dropout": (trainer, lambda model: model),
        "length_batches": (plan, random_batches),
        "keep_freed_memory": (trainer, contextlib.nullcontext)}[name]
    with patch.object(module, name, other):
        yield


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=SIZES, default="articles")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--skip-bf16", action="store_true", help="leave out transformers.Trainer(bf16=True), which is very slow where bfloat16 is emulated")
    parser.add_argument("--ablation", action="store_true")
    args = parser.parse_args()

    max_length, count = SIZES[args.workload]
    train, test = make_rows(args.workload, args.rows or count)
    task = TextClassification.from_rows(train, max_length=max_length)
    features = task.encode(train)
    lengths = [len(f["input_ids"]) for f in features]
    config = TrainingConfig(learning_rate=1e-4, num_train_epochs=args.epochs, max_grad_norm=1.0)

    runs = {"transformers.Trainer": (with_transformers, dict(bf16=False)), "transformers.Trainer bf16": (with_transformers, dict(bf16=True)), "sftbook.Trainer": (with_ours, {})}
    if args.skip_bf16:
        del runs["transformers.Trainer bf16"]
    if args.ablation:
        runs |= {f"  without {name}": (with_ours, dict(off=name)) for name in ("use_byte_dropout", "length_batches", "keep_freed_memory")}

    for run in (with_transformers, with_ours):  # nothing below pays for a first use
        run(task, features[:64], config, bf16=False)
    speeds, models = {name: [] for name in runs}, {}
    for _ in range(args.rounds):
        for name, (run, settings) in runs.items():
            with without(settings["off"]) if "off" in settings else contextlib.nullcontext():
                models[name], seconds = run(task, features, config, **settings)
            speeds[name].append(len(train) * args.epochs / seconds)

    dtype = pick_dtype()
    ceiling, flops = matmul_ceiling(dtype), training_flops(task.init_model(), lengths) / len(lengths)
    print(f"{hardware()}\n{args.workload}: {len(train)} rows x {args.epochs} epochs, tokens mean {np.mean(lengths):.0f} max {max(lengths)}, ours in {dtype}, matrix-product ceiling {ceiling / 1e9:.0f} GFLOP/s")
    print(f"{'':28}{'rows/s median [range]':>26}{'ours is faster by':>26}{'MFU':>7}   accuracy on {len(test)} test rows")
    for name, rates in speeds.items():
        ratios = [a / b for a, b in zip(speeds["sftbook.Trainer"], rates)]
        right = (predict(task, models[name], test).labels == np.array(test["label"])).astype(float)
        middle = statistics.median(rates)
        print(f"{name:28}{middle:10.2f} [{min(rates):.2f}, {max(rates):.2f}]{statistics.median(ratios):12.2f}x [{min(ratios):.2f}, {max(ratios):.2f}]{middle * flops / ceiling:7.0%}   {bootstrap_interval(np.mean, right)}")


if __name__ == "__main__":
    main()
