"""Train the book's small GPT, or go on where it was stopped; write it as the package carries it.

    OMP_NUM_THREADS=1 python tools/pretrain_gpt.py runs/sftbook-gpt

One thread is enough: 16 minutes on a processor that multiplies bfloat16. A killed run goes on from
its last checkpoint.
To ship the result, copy the folder `sftbook-gpt` in it to sftbook/checkpoints.
"""
import sys
from pathlib import Path

from sftbook.folders import check_target
from sftbook.foundations.small_gpt import pretrain_gpt, save_gpt

if __name__ == "__main__":
    folder = check_target(Path(sys.argv[1]) / "sftbook-gpt")  # refused now, not after the training
    gpt = pretrain_gpt(Path(sys.argv[1]) / "checkpoints")
    print(f"written to {save_gpt(folder, gpt)}")
