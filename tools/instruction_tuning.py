"""Tune SmolLM2-135M on conversations made from the help pages, in several ways, and write what each
way answers to the same questions as a line of a file.

    OMP_NUM_THREADS=1 python tools/instruction_tuning.py FOLDER [--only NAME ...] [--each 12]

FOLDER keeps checkpoints and answers; a killed run goes on where it was, and what stands in the
file of results is not computed again. `--each` is the number of test questions of each kind.
Chapter 25_instruction_tuning reads the file; scores and intervals are computed there.
"""
import argparse
import json
import os
import shutil
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset

from sftbook.callbacks import Callback
from sftbook.core import hardware, quiet
from sftbook.preprocessing.conversations import load_conversations
from sftbook.preprocessing.help_instructions import (
    HELD_OUT_TASKS, REFUSAL, WORDINGS, help_instructions, instruction_parts)
from sftbook.rows import load_rows
from sftbook.settings import TrainingConfig
from sftbook.tasks.chat import ChatTuning, text_perplexity, with_examples
from sftbook.tasks.protocol import fine_tune, predict

RESULTS = Path(__file__).resolve().parent.parent / "nbs" / "cases" / "instruction_runs.jsonl"
RATES = {"lora": 1e-3, "full": 5e-5}
CHUNK = 24  # questions that are answered at a time


@dataclass(frozen=True)
class System:
    "One way to have the questions answered."
    name: str
    trained: str | None = None  # None: not at all
    rows: int = 0
    epochs: int = 1
    learn: str = "answers"
    pack: bool = False
    examples: int = 0  # solved ones in the prompt


SYSTEMS = [
    System("untuned"), System("LoRA, 100 rows", "lora", 100), System("few-shot", examples=2),
    System("LoRA, 300 rows", "lora", 300), System("full, 300 rows", "full", 300),
    System("LoRA, 300 rows, all tokens", "lora", 300, learn="all"),
    System("LoRA, 300 rows, packed", "lora", 300, pack=True),
    System("LoRA, 100 rows, 3 epochs", "lora", 100, 3), System("LoRA, 1000 rows", "lora", 1000),
    System("full, 1000 rows", "full", 1000), System("LoRA, all rows", "lora", 10_000)]


def in_turns(rows):
    "One row of each kind after the other, so that every beginning holds all kinds."
    seen, order = Counter(), []
    for i, about in enumerate(rows["about"]):
        order.append((seen[about["task"]], about["task"], i))
        seen[about["task"]] += 1
    return rows.select([i for *_, i in sorted(order)])


def material(folder):
    "Conversations to train and to test on, and solved examples; made once."
    if not (folder / "examples.jsonl").exists():
        rows = help_instructions()
        parts, _ = instruction_parts(rows, dict(train=10_000, test=100))
        for name in ("train", "test"):
            write_rows(folder / f"{name}.jsonl", in_turns(parts[name]))
        write_rows(folder / "examples.jsonl", solved(rows))
    read = {}
    for name in ("train", "test", "examples"):
        read[name] = load_conversations(folder / f"{name}.jsonl")
    return read


def solved(rows, each=2):
    "Short conversations of the training pages, of every kind, those that nobody trains on too."
    found = []
    for kind in WORDINGS:
        mine = [i for i, about in enumerate(rows["about"])
                if about["part"] == "train" and about["task"] == kind]
        mine.sort(key=lambda i: len(rows[i]["messages"][0]["content"]))
        found += mine[len(mine) // 4:][:each]
    return rows.select(found)


def write_rows(path, rows):
    partial = path.with_suffix(".partial")
    with open(partial, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(dict(messages=row["messages"], **row["about"])) + "\n")
    partial.rename(path)


def train(system, task, rows, folder):
    "The model, and what its training took."
    torch.manual_seed(0)
    model = task.init_model()
    if system.trained is None:
        return model.eval(), {}
    config = TrainingConfig(learning_rate=RATES[system.trained], num_train_epochs=system.epochs,
                            per_device_train_batch_size=4, bf16=False, save_seconds=180, seed=0,
                            attn_implementation="sdpa", save_total_limit=1)
    checkpoints, start = folder / "checkpoints", time.process_time()
    there = any(checkpoints.glob("step-*"))
    tuned = fine_tune(task, rows.select(range(min(system.rows, len(rows)))), config=config,
                      model=model, trained=system.trained, checkpoints=checkpoints, resume=there,
                      callbacks=[Lines()])
    result = tuned.result
    return tuned.model, dict(
        cpu_seconds=round(time.process_time() - start, 1), resumed=there,
        seconds=round(result.state.seconds, 1), tokens=result.state.tokens,
        rows=result.state.rows, losses=[round(s["loss"], 4) for s in result.state.history])


class Lines(Callback):
    "A line of the log every few steps."
    def on_train_begin(self, state, total):
        self.total = total

    def on_step_end(self, state, record):
        if state.step % 5 == 0:
            rate = state.tokens / max(state.seconds, 1e-9)
            print(f"  step {state.step}/{self.total} loss {state.history[-1]['loss']:.3f}, "
                  f"{rate:.0f} tokens/s", flush=True)


def answers(task, model, rows, folder):
    "Replies to all rows, chunk by chunk; those that are there are not computed again."
    path, start = folder / "replies.jsonl", time.process_time()
    done = [json.loads(line) for line in path.open()] if path.exists() else []
    for begin in range(len(done), len(rows), CHUNK):
        chunk = rows.select(range(begin, min(begin + CHUNK, len(rows))))
        replies = predict(task, model, chunk, batch_size=CHUNK)
        with open(path, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(list(reply)) + "\n" for reply in replies)
        done += [list(reply) for reply in replies]
        print(f"  {len(done)}/{len(rows)} answered", flush=True)
    return done, round(time.process_time() - start, 1)


def asked(system, rows, examples):
    "The questions, with solved examples of the same kind in front where a system has them."
    if not system.examples:
        return rows
    kinds, parts = {}, []
    for row in examples:
        kinds.setdefault(row["about"]["task"], []).append(row["messages"])
    for i, about in enumerate(rows["about"]):
        solved = kinds[about["task"]][:system.examples]
        parts.append(with_examples(rows.select([i]), solved)[0])
    return Dataset.from_list([dict(messages=p["messages"], about=p["about"]) for p in parts])


def run(system, read, texts, folder, each):
    "Train, ask, and look at what was forgotten."
    folder.mkdir(parents=True, exist_ok=True)
    task = ChatTuning("smollm2", max_length=512, learn=system.learn, pack=system.pack,
                      refusal=REFUSAL, max_new_tokens=80)
    model, cost = train(system, task, read["train"], folder)
    test = read["test"].select(range(each * len(WORDINGS)))
    replies, seconds = answers(task, model, asked(system, test, read["examples"]), folder)
    score = text_perplexity(model, task.tokenizer, texts, 128)
    return dict(system=vars(system), training=cost, replies=replies, answer_cpu_seconds=seconds,
                asked=[[row["about"]["task"], row["about"]["page"]] for row in test],
                questions=[row["messages"] for row in test] if system.name == "untuned" else None,
                perplexity=[[round(a, 3), int(b)] for a, b in score.rows.tolist()],
                held_out=list(HELD_OUT_TASKS), machine=str(hardware()).splitlines()[0])


def other_texts(n=40):
    "News, of which no conversation speaks."
    with quiet():
        rows = load_rows("bbc-news")
        return rows.shuffle(seed=0).select(range(n))["text"][:]


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", help="names of systems")
    parser.add_argument("--each", type=int, default=12)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    lines = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.exists() else []
    known = {json.loads(line)["system"]["name"] for line in lines}
    read, texts = material(args.folder), other_texts()
    print(f"{len(read['train']):,} conversations to train on, process {os.getpid()}", flush=True)
    for system in SYSTEMS:
        if system.name in known or args.only and system.name not in args.only:
            continue
        print(system.name, time.strftime("%H:%M:%S"), flush=True)
        folder = args.folder / system.name.replace(", ", "-").replace(" ", "_")
        result = run(system, read, texts, folder, args.each)
        with open(RESULTS, "a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)


if __name__ == "__main__":
    main()
