"Training as behaviour: killed processes, damaged checkpoints, broken rows, several processes."
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from sftbook import trainer
from sftbook.core import ConfigError, TrainingError
from sftbook.preprocessing import pad_batch
from sftbook.trainer import Trainer, TrainingConfig

SCRIPT = """
import sys, time, torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification
from sftbook.preprocessing import pad_batch
from sftbook.trainer import Trainer, TrainingConfig
import numpy as np
from safetensors.torch import save_model

folder, out, resume, pause = sys.argv[1], sys.argv[2], sys.argv[3] == "resume", float(sys.argv[4])
rng = np.random.default_rng(0)
rows = [rng.integers(4, 50, rng.integers(3, 20)).tolist() for _ in range(80)]
features = [dict(input_ids=r, labels=int(sum(r) % 2)) for r in rows]
torch.manual_seed(0)
model = BertForSequenceClassification(BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64))

def loss(model, batch):
    time.sleep(pause)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return nn.functional.cross_entropy(logits, batch["labels"], reduction="sum"), len(logits)

scores = lambda model: {"accuracy": model.classifier.weight.sum().item()}
config = TrainingConfig(learning_rate=1e-3, num_train_epochs=4, per_device_train_batch_size=8, save_steps=3, metric_for_best_model="accuracy")
trainer = Trainer(model, loss, lambda f: pad_batch(f, {"input_ids": 0}), config, checkpoints=folder, evaluate=scores)
result = trainer.fit(features, resume=resume)
save_model(model, out)
print(result.messages, result.state.best_step)
"""


def start(folder, out, resume="fresh", pause=0.0):
    return subprocess.Popen([sys.executable, "-W", "error::UserWarning", "-c", SCRIPT, str(folder), str(out), resume, str(pause)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(folder, pattern, process, seconds=120):
    "Wait until a file appears; fail with the process's output when it ends before."
    end = time.monotonic() + seconds
    while not list(Path(folder).glob(pattern)):
        assert process.poll() is None and time.monotonic() < end, process.communicate()[0]
        time.sleep(0.02)


def test_a_killed_run_resumes_bit_for_bit(tmp_path):
    straight = start(tmp_path / "a", tmp_path / "a.safetensors")
    killed = start(tmp_path / "b", tmp_path / "b.safetensors", pause=0.05)
    wait_for(tmp_path / "b", "step-0000001[2-9]", killed)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "b.safetensors").exists()
    output = straight.communicate()[0]
    assert straight.returncode == 0, output
    resumed = start(tmp_path / "b", tmp_path / "b.safetensors", "resume")
    said = resumed.communicate()[0]
    assert resumed.returncode == 0 and "resumed after step" in said, said
    a, b = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors")
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert output.split("]")[-1] == said.split("]")[-1]  # the same best step


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(20, 8), nn.Linear(8, 2)

    def forward(self, ids, mask):
        mask = mask.unsqueeze(-1)
        return self.head((self.words(ids) * mask).sum(1) / mask.sum(1))


def words_loss(model, batch):
    logits = model(batch["input_ids"], batch["attention_mask"])
    return nn.functional.cross_entropy(logits, batch["labels"], reduction="sum"), len(logits)


def collate(rows):
    return pad_batch(rows, {"input_ids": 0})


def words_rows(n=64):
    rng = np.random.default_rng(0)
    return [dict(input_ids=rng.integers(1, 20, rng.integers(2, 9)).tolist(), labels=int(rng.integers(2))) for _ in range(n)]


def test_a_loss_that_is_not_finite_stops_before_the_update_and_names_the_rows():
    torch.manual_seed(0)
    model, rows = Words(), words_rows()
    rows[17]["input_ids"] = [19]
    for row in rows[:17] + rows[18:]:
        row["input_ids"] = [i % 19 for i in row["input_ids"]]
    with torch.no_grad():
        model.words.weight[19] = float("inf")
    seen = []

    def loss(model, batch):
        seen.append({k: v.clone() for k, v in model.state_dict().items()})
        return words_loss(model, batch)

    with pytest.raises(TrainingError, match=r"\b17\b"):
        Trainer(model, loss, collate, TrainingConfig(learning_rate=0.1, warmup_steps=0, per_device_train_batch_size=8)).fit(rows)
    assert all(torch.equal(v, seen[-1][k]) for k, v in model.state_dict().items())


def test_a_cut_checkpoint_is_skipped_and_said(tmp_path):
    config = TrainingConfig(learning_rate=0.05, num_train_epochs=3)
    torch.manual_seed(0)
    whole = Words()
    first = Trainer(whole, words_loss, collate, config, checkpoints=tmp_path).fit(words_rows())
    newest = sorted(tmp_path.glob("step-*"))[-1]
    (newest / "optimizer.safetensors").write_bytes(b"cut")
    torch.manual_seed(0)
    again = Words()
    result = Trainer(again, words_loss, collate, config, checkpoints=tmp_path).fit(words_rows(), resume=True)
    assert any("damaged" in m and newest.name in m for m in result.messages)
    assert result.state.step == first.state.step
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters()))


@pytest.mark.parametrize("began, elsewhere", [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)])
def test_a_resumed_run_keeps_its_number_format(tmp_path, monkeypatch, began, elsewhere):
    config, seen = TrainingConfig(num_train_epochs=2), []

    def loss(model, batch):
        seen.append(model.head(torch.zeros(1, model.head.in_features)).dtype)
        return words_loss(model, batch)

    monkeypatch.setattr(trainer, "pick_dtype", lambda device: began)
    Trainer(Words(), loss, collate, config, checkpoints=tmp_path).fit(words_rows())
    shutil.rmtree(sorted(tmp_path.glob("step-*"))[-1])
    monkeypatch.setattr(trainer, "pick_dtype", lambda device: elsewhere)
    result = Trainer(Words(), loss, collate, config, checkpoints=tmp_path).fit(words_rows(), resume=True)
    assert any("resumed" in m for m in result.messages)
    assert result.dtype == str(began).removeprefix("torch.") and set(seen) == {began}


def test_a_checkpoint_of_other_rows_is_refused(tmp_path):
    config = TrainingConfig(num_train_epochs=1)
    Trainer(Words(), words_loss, collate, config, checkpoints=tmp_path).fit(words_rows(), identity="a")
    with pytest.raises(ConfigError, match="other settings or other rows"):
        Trainer(Words(), words_loss, collate, config, checkpoints=tmp_path).fit(words_rows(), resume=True, identity="b")


def test_the_best_epoch_survives_a_resume(tmp_path):
    scores = {8: 0.5, 16: 0.9, 24: 0.7, 32: 0.6}
    config = TrainingConfig(num_train_epochs=4, per_device_train_batch_size=8, metric_for_best_model="score", early_stopping_patience=2)
    steps = []

    def loss(model, batch):
        steps.append(1)
        if len(steps) == 20:
            raise KeyboardInterrupt
        return words_loss(model, batch)

    def evaluate(model):
        return {"score": scores[8 * (1 + len(list(tmp_path.glob("marker*"))))]}

    def marked(model):
        value = evaluate(model)
        (tmp_path / f"marker{len(list(tmp_path.glob('marker*')))}").touch()
        return value

    with pytest.raises(KeyboardInterrupt):
        Trainer(Words(), loss, collate, config, evaluate=marked, checkpoints=tmp_path / "c").fit(words_rows())
    result = Trainer(Words(), words_loss, collate, config, evaluate=marked, checkpoints=tmp_path / "c").fit(words_rows(), resume=True)
    assert (result.state.best, result.state.best_step, len(result.state.evaluations)) == (0.9, 16, 4)


PROCESSES = """
import json, sys, torch
sys.path.insert(0, sys.argv[1])
from test_trainer import Words, collate, words_loss, words_rows
from sftbook.trainer import Trainer, TrainingConfig
torch.manual_seed(0)
model = Words()
result = Trainer(model, words_loss, collate, TrainingConfig(learning_rate=0.05, num_train_epochs=2, per_device_train_batch_size=int(sys.argv[3]))).fit(words_rows(50))
from accelerate import PartialState
if PartialState().is_main_process: json.dump([[h["loss"] for h in result.state.history], model.words.weight.tolist(), result.state.processes], open(sys.argv[2], "w"))
if torch.distributed.is_initialized(): torch.distributed.destroy_process_group()
"""


def test_two_processes_of_eight_rows_are_one_of_sixteen(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(PROCESSES, encoding="utf-8")
    here, env = str(Path(__file__).parent), {**os.environ, "OMP_NUM_THREADS": "1"}
    launch = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1", "--master-port=0", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]
    two = subprocess.run([sys.executable, *launch, str(script), here, str(tmp_path / "two.json"), "8"], env=env | {"ACCELERATE_USE_CPU": "true"}, capture_output=True, text=True)
    assert two.returncode == 0, two.stderr
    one = subprocess.run([sys.executable, str(script), here, str(tmp_path / "one.json"), "16"], env=env, capture_output=True, text=True)
    assert one.returncode == 0, one.stderr
    results = [json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json")]
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-4)
    np.testing.assert_allclose(results[0][1], results[1][1], atol=1e-4)
    assert (results[0][2], results[1][2]) == (1, 2)  # the ceiling of MFU is that of all processes
