"""Pre-train the book's Chinese encoder in stages, or go on where that was stopped, and write it as
the package carries it.

    python tools/pretrain.py runs/second --prepare
    OMP_NUM_THREADS=1 ACCELERATE_USE_CPU=true \\
        torchrun --nproc-per-node 2 tools/pretrain.py runs/second

The first line prepares the texts and asks the teacher for its vectors (`--share 0/2` and
`--share 1/2` in two processes halve the time). On processors, one process a core can be faster
than one process with several threads. A killed run goes on from its last checkpoint, with the same
command; on another machine, from the folders of the stages that are finished. `--first` makes the
first edition again: one stage, no words, no teacher.
"""
import argparse
import time
from pathlib import Path

import numpy as np
from accelerate import PartialState

from sftbook.core import read_json
from sftbook.foundations.encoder import pretrain, save_encoder, training_log
from sftbook.foundations.pretraining import init_encoder
from sftbook.foundations.pretraining_stages import (
    SECOND_EDITION, load_richer, prepare_material, pretrain_stage, teacher_vectors)
from sftbook.foundations.richer_pretraining import PackedRows, text_order


class Report:
    "Prints how far a computation is, once a minute."
    def __init__(self):
        self.began = self.said = time.monotonic()

    def __call__(self, done, todo):
        now = time.monotonic()
        if now - self.said > 60 or done == todo:
            self.said = now
            rate = done / max(1e-9, now - self.began)
            print(f"teacher: {done:,} of {todo:,} texts, {rate:.1f} a second", flush=True)


def prepare_start(folder):
    "Texts, and an encoder that has read nothing; both made once."
    material = prepare_material(folder)
    if not (folder / "start").is_dir():
        order = text_order(len(material.tokens), np.random.default_rng(0))
        rows = PackedRows(material.tokens, material.tokenizer, 128, [order])
        some = [rows[i] for i in range(0, len(rows), 5)]
        init_encoder(folder / "start", material.tokenizer, some)
    return material


def prepare(folder, share=(0, 1)):
    "The same, and the teacher's vectors."
    material = prepare_start(folder)
    vectors = teacher_vectors(material.texts, folder / "teacher.npy", share=share, report=Report())
    return material, vectors


def whole_log(stages):
    "The logs of stages as that of one run, in the form that the card and the chapters read."
    logs = [read_json(stage / "log.json") for stage in stages]
    stages, steps = [log.pop("stage") for log in logs], 0
    whole = logs[-1] | dict(losses=[], evaluations=[], stages=stages)
    for log in logs:
        for name in ("losses", "evaluations"):
            whole[name] += [line | dict(step=line["step"] + steps) for line in log[name]]
        steps += log["steps"]
    for name in ("steps", "rows", "tokens", "seconds", "flops"):
        whole[name] = sum(log[name] for log in logs)
    whole["tokens_per_second"] = round(whole["tokens"] / whole["seconds"])
    whole["mfu"] = round(whole["flops"] / whole["seconds"] / whole["ceiling"], 3)
    return whole


def second_edition(folder):
    "All stages, and the encoder at their end."
    with PartialState().main_process_first():
        material, vectors = prepare(folder)
    start, done = folder / "start", []
    for stage in SECOND_EDITION:
        start = pretrain_stage(folder, stage, material, start, vectors, progress=True)
        done.append(start)
    if PartialState().is_main_process:
        model = load_richer(start)
        return save_encoder(folder / "sftbook-zh", model.mlm, material.tokenizer, whole_log(done))


def first_edition(folder):
    "One stage, single characters."
    tuned = pretrain(folder, progress=True)
    if PartialState().is_main_process:
        for message in tuned.result.messages:
            print(message)
        return save_encoder(folder / "sftbook-zh", tuned.model, tuned.task.tokenizer,
                            training_log(tuned))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prepare", action="store_true", help="texts and vectors, no training")
    parser.add_argument("--share", default="0/1", help="of the teacher's work: this one/how many")
    parser.add_argument("--first", action="store_true", help="make the first edition")
    a = parser.parse_args()
    if a.prepare:
        prepare(a.folder, tuple(map(int, a.share.split("/"))))
    elif written := (first_edition if a.first else second_edition)(a.folder):
        print(f"written to {written}; to ship it, copy it to sftbook/checkpoints")


if __name__ == "__main__":
    main()
