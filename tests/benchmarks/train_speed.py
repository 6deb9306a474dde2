"""How fast is our trainer beside transformers.Trainer, as it comes and at its best?

    python tests/benchmarks/train_speed.py [--workload articles ragged titles e5] [--rounds 5]
    python tests/benchmarks/train_speed.py --workload titles --rows 64 --rounds 1 --json speed.json

Each trainer runs in a process of its own that was started fresh: transformers.Trainer leaves its
precision in the state that accelerate shares. All load the same initial model from one folder and
train on the same encoded rows, for as many epochs, with the same batch size, rates, decay and
clipping. A round runs each of them once; the machine may be busy with other things, so speeds are
compared within a round, and the table shows medians and ranges over the rounds.

    sftbook.Trainer           as it comes: format, kernel and batches are its own choice
    transformers.Trainer      as it comes: float32, random batches, and the attention dropout of the
                              checkpoint, which our model leaves out
    transformers at its best  rows of similar length together, fused AdamW, no attention dropout,
                              and the fastest of bf16 or not with eager or sdpa attention; each of
                              the four is tried once in a short run, all are printed
    bare loop                 torch alone, with our batches, format, kernel, dropout and memory
                              settings; what our trainer needs more than this is its overhead

The clock runs from the first call to the end of training, so warming up counts; "later" is the
speed without the first step. Our trainer measures formats and kernels once a machine: that falls
into the short run, not into the rounds. MFU is the share of the matrix-product ceiling of the run's
format, measured in the same process right before. Memory is the largest the process has ever had;
on a GPU, what torch had taken of the GPU's.
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

from sftbook.autotune import Choice, keep_freed_memory
from sftbook.core import hardware, matmul_ceiling, quiet
from sftbook.corpora import REGISTRY, load_corpus
from sftbook.model import training_flops, use_byte_dropout
from sftbook.plan import plan_epoch
from sftbook.preprocessing.copies import duplicate_clusters
from sftbook.preprocessing.rows import deduplicate, split_rows
from sftbook.settings import learning_rate_factor
from sftbook.tasks.text_classification import TextClassification
from sftbook.trainer import Trainer, TrainingConfig

# Of each workload: tokens read of a row, rows, checkpoint.
WORKLOADS = {"articles": (256, 128, "minilm"), "ragged": (128, 512, "minilm"),
             "titles": (32, 1000, "minilm"), "e5": (64, 256, "e5-small")}
OURS, THEIRS, BEST, BARE = ("sftbook.Trainer", "transformers.Trainer", "transformers at its best",
                            "bare loop")


def shorten(text, index):
    "The first words of a text; how many is drawn per row, about 20 on average and 100 at most."
    words = text.split()
    count = np.clip(np.random.default_rng(index).lognormal(2.8, 0.7), 3, 100)
    return " ".join(words[: int(count)])


def make_rows(workload, count):
    "Training rows and test rows of a workload, from the leak-free split of BBC News."
    rows, _ = deduplicate(load_corpus("bbc-news"))
    splits = split_rows(rows, duplicate_clusters(rows["text"]))
    change = {"articles": lambda row, i: {"text": row["text"]},
              "ragged": lambda row, i: {"text": shorten(row["body"], i)},
              "titles": lambda row, i: {"text": row["title"]}}[workload]
    with quiet():
        train, test = (splits[name].map(change, with_indices=True) for name in ("train", "test"))
    return train.shuffle(seed=0).select(range(min(count, len(train)))), test


def mixed_rows(count):
    "English titles and the beginnings of Chinese reviews, in turns; the label is the language."
    from datasets import ClassLabel, Dataset, Features, Value

    english, chinese = load_corpus("bbc-news")["title"], load_corpus("zh-reviews")["text"]
    rng, half = np.random.default_rng(0), count // 2
    chosen = [rng.permutation(np.array(texts, object))[:half] for texts in (english, chinese)]
    texts = [text[:60] for pair in zip(*chosen) for text in pair]
    columns = Features({"text": Value("string"), "label": ClassLabel(names=["en", "zh"])})
    return Dataset.from_dict({"text": texts, "label": [0, 1] * half}, columns)


def prepare(workload, count, home):
    "Write the encoded rows and the initial model, which every process loads."
    max_length, usual, checkpoint = WORKLOADS[workload]
    count = count or usual
    rows = mixed_rows(count) if workload == "e5" else make_rows(workload, count)[0]
    task = TextClassification.from_rows(rows, checkpoint=checkpoint, max_length=max_length)
    features = task.encode(rows)
    torch.manual_seed(0)
    with quiet():
        task.init_model().save_pretrained(home)
        task.tokenizer.save_pretrained(home)
    kept = dict(labels=task.labels, max_length=max_length, features=features)
    (home / "rows.json").write_text(json.dumps(kept), encoding="utf-8")
    return [len(f["input_ids"]) for f in features]


class Work:
    "What a process works with: rows, model and settings, the same for all."
    def __init__(self, spec):
        import transformers

        kept = json.loads(Path(spec["home"], "rows.json").read_text(encoding="utf-8"))
        self.spec, self.features = spec, kept["features"][: spec["rows"]]
        self.task = TextClassification(
            kept["labels"], checkpoint=spec["home"], max_length=kept["max_length"])
        kernel = {"attn_implementation": spec["kernel"]} if spec["kernel"] else {}
        if spec["kind"] == THEIRS:
            kernel["attention_probs_dropout_prob"] = 0.1
        with quiet():
            self.model = transformers.AutoModelForSequenceClassification.from_pretrained(
                spec["home"], dtype=torch.float32, **kernel)
        self.config = TrainingConfig(learning_rate=1e-4, num_train_epochs=spec["epochs"],
                                     per_device_train_batch_size=spec["batch_size"])
        self.first = None  # when the first step was over

    def timed_loss(self, model, batch):
        "Our loss; the second call begins when the first step is over."
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls == 2:
            self.first = time.perf_counter()
        return self.task.loss(model, batch)


def train_ours(work):
    result = Trainer(work.model, work.timed_loss, work.task.collate, work.config).fit(work.features)
    lengths = [len(f["input_ids"]) for f in work.features]
    chosen = Choice(result.dtype, tuple(result.state.kernels)).kernel(int(np.mean(lengths)))
    kernel = chosen or work.model.config._attn_implementation
    return result.dtype, kernel, result.state.history[-1]["loss"]


def train_theirs(work):
    import transformers

    spec, c = work.spec, work.config
    more = {} if spec["kind"] == THEIRS else dict(
        bf16=spec["bf16"], train_sampling_strategy="group_by_length", optim="adamw_torch_fused")

    class FirstStep(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            work.first = work.first or time.perf_counter()

    with tempfile.TemporaryDirectory() as folder, quiet():
        settings = transformers.TrainingArguments(
            folder, learning_rate=c.learning_rate, num_train_epochs=c.num_train_epochs,
            per_device_train_batch_size=c.per_device_train_batch_size, seed=c.seed,
            weight_decay=c.weight_decay, warmup_steps=c.warmup_steps, max_grad_norm=c.max_grad_norm,
            save_strategy="no", logging_strategy="no", report_to="none", disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(), **more)
        collate = transformers.DataCollatorWithPadding(work.task.tokenizer)
        trainer = transformers.Trainer(work.model, settings, train_dataset=work.features,
                                       data_collator=collate, callbacks=[FirstStep()])
        trainer.remove_callback(transformers.PrinterCallback)
        done = trainer.train()
    dtype = "bfloat16" if more.get("bf16") else "float32"
    return dtype, work.model.config._attn_implementation, done.training_loss


def train_barely(work):
    "The least that trains in the same way; `Trainer` adds what is needed when something breaks."
    c, dtype = work.config, getattr(torch, work.spec["dtype"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, lengths = work.model.to(device).train(), [len(f["input_ids"]) for f in work.features]
    if device.type == "cpu":
        use_byte_dropout(model)
    optimizer = torch.optim.AdamW(
        model.parameters(), c.learning_rate, weight_decay=c.weight_decay, fused=True)
    epochs = [plan_epoch(lengths, c, epoch) for epoch in range(c.num_train_epochs)]
    total, step = sum(map(len, epochs)), 0
    with keep_freed_memory():
        for rows in (rows for steps in epochs for rows in steps):
            batch = work.task.collate([work.features[row] for row in rows])
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
                loss, targets = work.timed_loss(model, batch)
            (loss / targets).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), c.max_grad_norm)
            rate = c.learning_rate * learning_rate_factor(step, total, c)
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
            step += 1
    return work.spec["dtype"], work.spec["kernel"], loss.item() / targets


def worker(spec):
    "Train once in this process, and print what it took."
    work = Work(spec)
    lengths = [len(f["input_ids"]) for f in work.features]
    flops = training_flops(work.model, lengths) * spec["epochs"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    ceilings = {name: matmul_ceiling(getattr(torch, name), device)
                for name in ("float32", "bfloat16")}
    train = {OURS: train_ours, BARE: train_barely}.get(spec["kind"], train_theirs)
    start = time.perf_counter()
    dtype, kernel, loss = train(work)
    end = time.perf_counter()
    rows, first = len(lengths) * spec["epochs"], work.first or end
    later = (rows - spec["batch_size"]) / (end - first) if rows > spec["batch_size"] else None
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated()
    print(json.dumps(dict(
        kind=spec["kind"], dtype=dtype, kernel=kernel, loss=loss, seconds=end - start,
        first_step=first - start, speed=rows / (end - start), later=later, mib=peak / 2**20,
        flops=flops, ceilings=ceilings, mfu=flops / (end - start) / ceilings[dtype])))


def start(kind, home, args, rows=None, epochs=None, **how):
    "Run one trainer in a fresh process; what it printed."
    spec = dict(kind=kind, home=str(home), rows=rows, epochs=epochs or args.epochs,
                batch_size=args.batch_size, kernel=None, bf16=False, dtype=None) | how
    command = [sys.executable, __file__, "--worker", json.dumps(spec)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{kind} failed; its error stands above")
    return json.loads(done.stdout.splitlines()[-1])


def choose(home, args):
    "How transformers is fastest, and how ours computes: from short runs."
    short = dict(rows=args.probe_steps * args.batch_size, epochs=1)
    ways = [dict(bf16=bf16, kernel=kernel) for bf16 in (False, True)
            for kernel in ("eager", "sdpa")]
    tried = [start(BEST, home, args, **short, **way) for way in ways]
    print("transformers, short runs, rows/s without the first step:", ", ".join(
        f"{t['dtype']} {t['kernel']} {t['later']:.1f}" for t in tried))
    best = ways[int(np.argmax([t["later"] for t in tried]))]
    ours = start(OURS, home, args, **short)
    print(f"the best: {best}; ours computes in {ours['dtype']} with {ours['kernel']} attention")
    return best, dict(dtype=ours["dtype"], kernel=ours["kernel"]), tried


def spread(values, digits=1):
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def show(rounds):
    "One line a trainer. Ratios are those of the same round."
    print(f"{'':25}{'rows/s':>21}{'later':>8}{'first':>8}{'ours faster by':>20}{'MFU':>6}"
          f"{'MiB':>6}{'ours':>6}")
    for name in rounds[0]:
        runs, ours = [r[name] for r in rounds], [r[OURS] for r in rounds]
        middle = {key: statistics.median(run[key] for run in runs)
                  for key in ("later", "first_step", "mfu", "mib")}
        ratios = [a["speed"] / b["speed"] for a, b in zip(ours, runs)]
        memory = statistics.median(a["mib"] / b["mib"] for a, b in zip(ours, runs))
        print(f"{name:25}{spread([run['speed'] for run in runs]):>21}{middle['later']:8.1f}"
              f"{middle['first_step']:7.2f}s{spread(ratios, 2):>20}{middle['mfu']:6.0%}"
              f"{middle['mib']:6.0f}{memory:6.2f}")
    over = [100 * (r[BARE]["speed"] / r[OURS]["speed"] - 1) for r in rounds]
    later = [100 * (r[BARE]["later"] / r[OURS]["later"] - 1) for r in rounds]
    print(f"overhead against the bare loop: {spread(over)} %, without the first step "
          f"{spread(later)} % (target: at most 3); the last column is our memory against theirs "
          "(at most 1.10)".replace("; ", ";\n"))


def compare(workload, args):
    "All rounds of a workload."
    with tempfile.TemporaryDirectory() as home:
        lengths = prepare(workload, args.rows, Path(home))
        print(f"\n{workload}: {len(lengths)} rows x {args.epochs} epochs, batch {args.batch_size}, "
              f"tokens mean {np.mean(lengths):.0f} max {max(lengths)}", flush=True)
        best, ours, tried = choose(home, args)
        how = {OURS: {}, THEIRS: {}, BEST: best, BARE: ours}
        rounds = []
        for i in range(args.rounds):
            order = [*how][i % len(how):] + [*how][: i % len(how)]  # nobody is always first
            found = {name: start(name, home, args, **how[name]) for name in order}
            rounds.append({name: found[name] for name in how})
            print(f"round {i + 1}:", ", ".join(
                f"{name} {run['speed']:.1f}" for name, run in rounds[-1].items()), flush=True)
    show(rounds)
    return dict(lengths_mean=float(np.mean(lengths)), tried=tried, best=best, rounds=rounds)


def main():
    known = [name for name, (_, _, checkpoint) in WORKLOADS.items() if checkpoint in REGISTRY]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", nargs="+", choices=known, default=known)
    parser.add_argument("--rows", type=int, help="fewer or more than usual")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--probe-steps", type=int, default=6, help="of the short runs")
    parser.add_argument("--json", type=Path, help="write all that was measured here")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker(json.loads(args.worker))
    print(hardware(), f"\ntorch {torch.__version__}, threads {torch.get_num_threads()}, "
          f"load {os.getloadavg()[0]:.1f}")
    found = {workload: compare(workload, args) for workload in args.workload}
    if args.json:
        about = dict(hardware=str(hardware()), torch=torch.__version__, rows=args.rows,
                     epochs=args.epochs, batch_size=args.batch_size)
        args.json.write_text(json.dumps(about | dict(workloads=found), indent=1) + "\n")


if __name__ == "__main__":
    main()
