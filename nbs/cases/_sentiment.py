"""Make the fine-tuned runs of the chapters on sentiment, each a line of a file.

    OMP_NUM_THREADS=1 python tools/sentiment.py reviews nbs/cases/sentiment_runs.jsonl
    OMP_NUM_THREADS=1 python tools/sentiment.py news nbs/cases/news_runs.jsonl --only e5-small

A killed measurement goes on where it was. The most wanted runs come first; several processes may
work on one file, each on what it is told by --only.
"""
import argparse
import time
from pathlib import Path

import torch

from sftbook.cases import news_sentiment, sentiment

CASES = {"reviews": (sentiment.review_plan, sentiment.recorded_run),
         "news": (news_sentiment.news_plan, news_sentiment.recorded_news_run)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", choices=CASES)
    parser.add_argument("file", type=Path)
    parser.add_argument("--only", help="runs that begin with this: a checkpoint, cnn or bilstm")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--most", type=int, help="only so many, from the beginning of the plan")
    a = parser.parse_args()
    torch.set_num_threads(1)
    plan, make = CASES[a.case]
    wanted = [s for s in plan(a.seeds) if a.only in (None, s["start"])]
    for settings in wanted[:a.most]:
        began = time.perf_counter()
        make(a.file, settings)
        print(f"{time.perf_counter() - began:6.0f} s  {settings}", flush=True)


if __name__ == "__main__":
    main()
