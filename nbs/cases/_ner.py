"""Compute what the case on Chinese names needs, run by run, each a line of a file.

    OMP_NUM_THREADS=1 python tools/ner.py                  all that is missing, cheap systems first
    OMP_NUM_THREADS=1 python tools/ner.py --stages search --systems sftbook-zh --heads CRF

A killed run goes on from its checkpoints; a result that is there is not computed again. Several of
these commands may run at once, with other systems or other heads. Stages: `search` (settings, with
4,000 sentences), `draws` (five other samples), `final` (all sentences, the test; of an encoder with
the heads that all searches have left) and `neighbours` (search, draws and test with neighbours to
read). The chapters are cases/22_ner and cases/22c_ner_study.
"""
import argparse
import os
import time
from pathlib import Path

os.environ["SFTBOOK_PROFILE"] = "full"

import torch  # noqa: E402

from sftbook.cases.ner_study import NER_SIZES, NerStudy, right_counts  # noqa: E402
from sftbook.cases.ner_taggers import HEADS  # noqa: E402
from sftbook.core import profile  # noqa: E402
from sftbook.evaluation.entities import entity_f1  # noqa: E402

RUNS = Path(__file__).resolve().parent.parent / "nbs/cases/ner_runs.jsonl"
SYSTEMS = ("gazetteer", "jieba", "LAC", "CRF on hand features", "BiLSTM-CRF", "sftbook-zh",
           "e5-small")
ENCODERS = ("sftbook-zh", "e5-small")
STAGES = ("search", "draws", "final", "neighbours")


class Told(NerStudy):
    "A study that says what it does."
    def run(self, settings, cheap=False):
        start = time.perf_counter()
        record = super().run(settings, cheap)
        said = " ".join(f"{k} {v}" for k, v in settings.items())
        f1, seconds = entity_f1(right_counts(record)), time.perf_counter() - start
        # the test is for the chapter to tell
        shown = "" if settings["asked"]["part"] == "test" else f"F1 {100*f1:.2f}, "
        print(f"{said}: {shown}{seconds:.0f} s now, {record.seconds:.0f} s when it ran", flush=True)
        return record


def go(study, stage, system, head):
    "One stage of one system."
    trained = system not in SYSTEMS[:3]
    if stage == "search" and trained:
        study.search(system, head)
    if stage == "draws" and trained:
        study.draws(system, head)
    if stage == "final" and (system not in ENCODERS or head in study.heads(system)):
        study.final(system, head)
    if stage == "neighbours" and system == "sftbook-zh":
        study.draws(system, "CRF", reads="neighbours")
        study.final(system, study.heads(system)[-1], reads="neighbours")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", nargs="+", default=SYSTEMS, choices=SYSTEMS)
    parser.add_argument("--heads", nargs="+", default=list(HEADS), choices=list(HEADS))
    parser.add_argument("--stages", nargs="+", default=STAGES, choices=STAGES)
    parser.add_argument("--file", type=Path, default=RUNS)
    o = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    study = Told(o.file, profile(**NER_SIZES))
    for stage in o.stages:
        for system in o.systems:
            for head in o.heads if system in ENCODERS else [""]:
                go(study, stage, system, head)


if __name__ == "__main__":
    main()
