"""Pre-train the book's Chinese encoder, or go on where it was stopped, and write it as the package
carries it.

    OMP_NUM_THREADS=1 ACCELERATE_USE_CPU=true \\
        torchrun --nproc-per-node 2 tools/pretrain.py runs/sftbook-zh

On processors, one process a core can be faster than one process with several threads. A killed
run goes on from its last checkpoint.
"""
import sys
from pathlib import Path

from accelerate import PartialState

from sftbook.foundations.encoder import pretrain, save_encoder, training_log

if __name__ == "__main__":
    tuned = pretrain(sys.argv[1], progress=True)
    if PartialState().is_main_process:
        folder = save_encoder(Path(sys.argv[1]) / "sftbook-zh", tuned.model,
                              tuned.task.tokenizer, training_log(tuned))
        for message in tuned.result.messages:
            print(message)
        print(f"written to {folder}; to ship it, copy it to sftbook/checkpoints")
