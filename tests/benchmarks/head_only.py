"""How fast is training a head on vectors that are computed once, beside transformers.Trainer with a
frozen body? Same rows, epochs, batch size and rate; each run in a process of its own, in turns.

    python tests/benchmarks/head_only.py [--workload titles|ragged|articles] [--rows 500]

"first" begins with an empty cache, so the body reads every row once; "again" finds the vectors on
disk. A run is timed from rows and a loaded model to the trained head. Prints rows/s (median
and range over the rounds), how many times as fast by the clock and by the time of the processor
(which counts where a machine has other work), peak memory, and the accuracy on the test rows.
"""
import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from train_speed import WORKLOADS, make_rows

from sftbook.core import hardware, quiet
from sftbook.evaluation.uncertainty import wilson_interval
from sftbook.tasks.protocol import predict
from sftbook.tasks.text_classification import TextClassification
from sftbook.trained_parts import freeze, head_only
from sftbook.trainer import Trainer, TrainingConfig

RUNS = {"transformers.Trainer, frozen body": "theirs", "sftbook, first": "first",
        "sftbook, again": "again"}


def train_theirs(task, model, features, config, folder):
    "transformers.Trainer; the frozen body reads every row in every epoch, with its dropout."
    import transformers

    same = "learning_rate num_train_epochs per_device_train_batch_size weight_decay warmup_steps"
    same = {name: getattr(config, name) for name in f"{same} max_grad_norm seed".split()}
    settings = transformers.TrainingArguments(
        folder, **same, save_strategy="no", logging_strategy="no", report_to="none",
        disable_tqdm=True, use_cpu=not torch.cuda.is_available())
    trainer = transformers.Trainer(
        freeze(model), settings, train_dataset=features,
        data_collator=transformers.DataCollatorWithPadding(task.tokenizer))
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()


def train_ours(task, model, rows, config):
    quick_task, head = head_only(task, model)
    features = quick_task.encode(rows)
    Trainer(head, quick_task.loss, quick_task.collate, config).fit(features)


def run(args):
    "Train once, and say how long it took and how good the head is."
    max_length, *_ = WORKLOADS[args.workload]
    train, test = make_rows(args.workload, args.rows)
    task = TextClassification.from_rows(train, max_length=max_length)
    config = TrainingConfig(learning_rate=args.rate, num_train_epochs=args.epochs)
    torch.manual_seed(0)
    with quiet(), tempfile.TemporaryDirectory() as folder:
        model = task.init_model()
        task.encode(train.select([0]))  # the tokenizer is loaded here
        start, used = time.perf_counter(), time.process_time()
        if args.run == "theirs":
            train_theirs(task, model, task.encode(train), config, folder)
        else:
            train_ours(task, model, train, config)
        seconds, used = time.perf_counter() - start, time.process_time() - used
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        right = int((predict(task, model.eval(), test).labels == np.array(test["label"])).sum())
    print(json.dumps(dict(seconds=seconds, processor=used, memory=memory, right=right,
                          test=len(test), train=len(train))))


def in_a_process(name, args, arrays):
    "One run; what it computes lies where `arrays` says."
    command = [sys.executable, __file__, "--run", name, "--workload", args.workload]
    command += ["--rows", args.rows, "--epochs", args.epochs, "--rate", args.rate]
    own = os.environ | {"SFTBOOK_CACHE": arrays}
    done = subprocess.run([*map(str, command)], env=own, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def own_cache(folder):
    "A cache with what was fetched, and no arrays."
    from sftbook.core import cache_dir

    for path in cache_dir().iterdir():
        if path.name != "arrays":
            os.symlink(path, os.path.join(folder, path.name))


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=list(WORKLOADS)[:3], default="titles")
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rate", type=float, default=5e-3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="add all that was measured to this file")
    parser.add_argument("--run", choices=RUNS.values(), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        return run(args)
    found = {name: [] for name in RUNS}
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as folder:
            own_cache(folder)
            for name, key in RUNS.items():
                found[name].append(in_a_process(key, args, folder))
    report(found, args)
    if args.json:
        kept = json.loads(args.json.read_text()) if args.json.exists() else {}
        kept[args.workload] = dict(epochs=args.epochs, runs=found)
        args.json.write_text(json.dumps(kept, indent=1) + "\n")


def report(found, args):
    theirs, rows = found["transformers.Trainer, frozen body"], found["sftbook, first"][0]["train"]
    print(f"{hardware()}\n{args.workload}: {rows} rows x {args.epochs} epochs")
    print(f"{'':34}{'rows/s median [range]':>24}{'times as fast':>18}{'by processor':>18}"
          f"{'MiB':>7}   accuracy")
    for name, runs in found.items():
        speed = middle([rows * args.epochs / r["seconds"] for r in runs], ",.0f")
        ratios = [middle([a[kind] / b[kind] for a, b in zip(theirs, runs)], ".1f")
                  for kind in ("seconds", "processor")]
        memory = max(r["memory"] for r in runs)
        print(f"{name:34}{speed:>24}{ratios[0]:>18}{ratios[1]:>18}{memory:7,.0f}   "
              f"{wilson_interval(runs[-1]['right'], runs[-1]['test'])}")


def middle(values, digits):
    low, high = min(values), max(values)
    return f"{statistics.median(values):{digits}} [{low:{digits}}, {high:{digits}}]"


if __name__ == "__main__":
    main()
