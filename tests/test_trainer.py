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
from sftbook.autotune import Choice
from sftbook.core import ConfigError, TrainingError
from sftbook.preprocessing.encoding import pad_batch
from sftbook.trainer import Trainer, TrainingConfig

SCRIPT = """
import sys, time, torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification
from sftbook.preprocessing.encoding import pad_batch
from sftbook.trainer import Trainer, TrainingConfig
import numpy as np
from safetensors.torch import save_model

folder, out, resume, pause = sys.argv[1], sys.argv[2], sys.argv[3] == "resume", float(sys.argv[4])
rng = np.random.default_rng(0)
rows = [rng.integers(4, 50, rng.integers(3, 20)).tolist() for _ in range(80)]
features = [dict(input_ids=r, labels=int(sum(r) % 2)) for r in rows]
torch.manual_seed(0)
model = BertForSequenceClassification(BertConfig(
    vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
    intermediate_size=64))

def loss(model, batch):
    time.sleep(pause)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return nn.functional.cross_entropy(logits, batch["labels"], reduction="sum"), len(logits)

def scores(model):
    return {"accuracy": model.classifier.weight.sum().item()}

def collate(rows):
    return pad_batch(rows, {"input_ids": 0})

config = TrainingConfig(learning_rate=1e-3, num_train_epochs=4, per_device_train_batch_size=8,
                        save_steps=3, metric_for_best_model="accuracy")
trainer = Trainer(model, loss, collate, config, checkpoints=folder, evaluate=scores)
result = trainer.fit(features, resume=resume)
save_model(model, out)
print(result.messages, result.state.best_step)
"""


def start(folder, out, resume="fresh", pause=0.0):
    words = [str(folder), str(out), resume, str(pause)]
    return subprocess.Popen(
        [sys.executable, "-W", "error::UserWarning", "-c", SCRIPT, *words],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


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
    def __init__(self, dropout=0.0):
        super().__init__()
        self.words, self.head = nn.Embedding(20, 8), nn.Linear(8, 2)
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids, mask):
        mask = mask.unsqueeze(-1)
        return self.head(self.dropout((self.words(ids) * mask).sum(1) / mask.sum(1)))


def words_loss(model, batch):
    logits = model(batch["input_ids"], batch["attention_mask"])
    return nn.functional.cross_entropy(logits, batch["labels"], reduction="sum"), len(logits)


def collate(rows):
    return pad_batch(rows, {"input_ids": 0})


def words_rows(n=64):
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(n):
        ids = rng.integers(1, 20, rng.integers(2, 9)).tolist()
        rows.append(dict(input_ids=ids, labels=int(rng.integers(2))))
    return rows


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

    config = TrainingConfig(learning_rate=0.1, warmup_steps=0, per_device_train_batch_size=8)
    with pytest.raises(TrainingError, match=r"\b17\b"):
        Trainer(model, loss, collate, config).fit(rows)
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
    resumed = Trainer(again, words_loss, collate, config, checkpoints=tmp_path)
    result = resumed.fit(words_rows(), resume=True)
    assert any("damaged" in m and newest.name in m for m in result.messages)
    assert result.state.step == first.state.step
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters()))


def chosen(dtype):
    return Choice(str(dtype).removeprefix("torch."))


@pytest.mark.parametrize("began, elsewhere", [
    (torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)])
def test_a_resumed_run_keeps_its_number_format(tmp_path, monkeypatch, began, elsewhere):
    config, seen = TrainingConfig(num_train_epochs=2), []

    def loss(model, batch):
        seen.append(model.head(torch.zeros(1, model.head.in_features)).dtype)
        return words_loss(model, batch)

    monkeypatch.setattr(trainer, "fastest", lambda *_, **__: chosen(began))
    Trainer(Words(), loss, collate, config, checkpoints=tmp_path).fit(words_rows())
    shutil.rmtree(sorted(tmp_path.glob("step-*"))[-1])
    monkeypatch.setattr(trainer, "fastest", lambda *_, **__: chosen(elsewhere))
    resumed = Trainer(Words(), loss, collate, config, checkpoints=tmp_path)
    result = resumed.fit(words_rows(), resume=True)
    assert any("resumed" in m for m in result.messages)
    assert result.dtype == str(began).removeprefix("torch.") and set(seen) == {began}


def test_a_checkpoint_of_other_rows_is_refused(tmp_path):
    config = TrainingConfig(num_train_epochs=1)
    first = Trainer(Words(), words_loss, collate, config, checkpoints=tmp_path)
    first.fit(words_rows(), identity={"rows": "a"})
    second = Trainer(Words(), words_loss, collate, config, checkpoints=tmp_path)
    with pytest.raises(ConfigError, match="other settings or other rows"):
        second.fit(words_rows(), resume=True, identity={"rows": "b"})


def test_the_best_epoch_survives_a_resume(tmp_path):
    scores = {8: 0.5, 16: 0.9, 24: 0.7, 32: 0.6}
    config = TrainingConfig(num_train_epochs=4, per_device_train_batch_size=8,
                            metric_for_best_model="score", early_stopping_patience=2)
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

    more = dict(evaluate=marked, checkpoints=tmp_path / "c")
    with pytest.raises(KeyboardInterrupt):
        Trainer(Words(), loss, collate, config, **more).fit(words_rows())
    resumed = Trainer(Words(), words_loss, collate, config, **more)
    state = resumed.fit(words_rows(), resume=True).state
    assert (state.best, state.best_step, len(state.evaluations)) == (0.9, 16, 4)


USUAL = TrainingConfig(learning_rate=0.05)


def fit(config=USUAL, rows=None, loss=words_loss, resume=False, dropout=0.3, **more):
    "Train a fresh model; the model and what was said of it."
    torch.manual_seed(0)
    model = Words(dropout)
    trainer = Trainer(model, loss, collate, config, **more)
    return model, trainer.fit(rows or words_rows(), resume=resume)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_what_an_earlier_trainer_and_the_environment_left_behind_changes_nothing(monkeypatch):
    alone, _ = fit()
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    from accelerate import Accelerator

    before = Accelerator()
    beside, result = fit(TrainingConfig(learning_rate=0.05, bf16=False))
    assert same(alone, beside) and result.dtype == "float32"
    assert (before.mixed_precision, before.gradient_accumulation_steps) == ("bf16", 4)
    before.state._reset_state()
    before.gradient_state._reset_state()


def test_a_step_without_targets_makes_no_update_and_is_said():
    rows = words_rows(64)
    for i in range(16):  # of one length, so that they make a step
        rows[i] = dict(input_ids=[1] * 40, labels=-100)

    def loss(model, batch):
        asked = batch["labels"] != -100
        logits, labels = model(batch["input_ids"], batch["attention_mask"]), batch["labels"]
        total = nn.functional.cross_entropy(logits[asked], labels[asked], reduction="sum")
        return total, int(asked.sum())

    model, result = fit(TrainingConfig(num_train_epochs=1, warmup_steps=0), rows, loss)
    assert len(result.state.history) == 3 and result.state.step == 4
    assert all(p.isfinite().all() for p in model.parameters())
    assert any("without a target" in m and "0, 1, 2" in m for m in result.messages)


@pytest.mark.parametrize("stops", [False, True])
def test_the_callers_layers_come_back(stops):
    model = Words(dropout=0.1)
    own, p = model.dropout, model.dropout.p

    def loss(model, batch):
        assert model.dropout is not own  # the faster one, while training
        if stops:
            raise KeyboardInterrupt
        return words_loss(model, batch)

    try:
        Trainer(model, loss, collate, TrainingConfig(num_train_epochs=1)).fit(words_rows())
    except KeyboardInterrupt:
        pass
    assert model.dropout is own and own.p == p and own.training == model.training == stops


def test_what_a_killed_save_left_is_removed(tmp_path):
    import socket

    left = tmp_path / f".step-00000003.{socket.gethostname()}-999999999-abc"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    fit(TrainingConfig(num_train_epochs=1), checkpoints=tmp_path)
    assert not left.exists() and list(tmp_path.iterdir())


def test_a_full_disk_costs_a_checkpoint_and_not_the_training(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    alone, _ = fit()
    monkeypatch.setattr(trainer, "save_checkpoint", full)
    beside, result = fit(checkpoints=tmp_path)
    assert same(alone, beside) and "No space left" in result.messages[0]


BEST = dict(num_train_epochs=4, metric_for_best_model="log_loss")


@pytest.mark.parametrize("values, best_step", [
    ([3.0, 1.0, 2.0, 4.0], 8),
    ([float("nan"), 3.0, float("nan"), 3.5], 8),
    ([float("nan")] * 4, None)])
def test_less_of_a_loss_is_better_and_what_is_no_number_never_is(values, best_step):
    left = iter(values)
    _, result = fit(TrainingConfig(**BEST), evaluate=lambda model: {"log_loss": next(left)})
    assert result.state.best_step == best_step
    assert bool(result.messages) == (best_step is None)


def test_an_unknown_metric_is_refused_before_the_first_step():
    config = TrainingConfig(**BEST | dict(metric_for_best_model="logloss"))
    known = {"log_loss": False, "accuracy": True}
    with pytest.raises(ConfigError, match="did you mean 'log_loss'"):
        Trainer(Words(), words_loss, collate, config, evaluate=len, directions=known)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_evaluation_that_fails_does_not_cost_the_epoch(tmp_path, error):
    config = TrainingConfig(learning_rate=0.05, **BEST)

    def measuring():
        left = iter([1.0, 2.0, 0.5, 3.0])
        return lambda model: {"log_loss": next(left)}

    def failing(model):
        raise error

    straight, whole = fit(config, evaluate=measuring())
    with pytest.raises(error):
        fit(config, evaluate=failing, checkpoints=tmp_path)
    resumed, result = fit(config, evaluate=measuring(), checkpoints=tmp_path, resume=True)
    assert "resumed after step 4" in result.messages[0]
    assert same(straight, resumed) and result.state.evaluations == whole.state.evaluations


@pytest.mark.parametrize("change", [
    dict(learning_rate=0.1), dict(num_train_epochs=5), dict(seed=1)])
def test_a_changed_setting_is_named_by_a_resume(tmp_path, change):
    fit(checkpoints=tmp_path)
    name, value = next(iter(change.items()))
    changed = TrainingConfig(**dict(learning_rate=0.05) | change)
    with pytest.raises(ConfigError, match=f"{name} was .*now it is {value}"):
        fit(changed, checkpoints=tmp_path, resume=True)
    kept_otherwise = TrainingConfig(learning_rate=0.05, save_steps=2, save_total_limit=5)
    fit(kept_otherwise, checkpoints=tmp_path, resume=True)


def test_a_share_of_a_ceiling_that_is_not_known_is_not_given():
    _, result = fit()
    assert result.mfu is None  # this model has no count of operations
    assert result.to_dict()["final_loss"] > 0
    result.state.flops, result.state.device = 1e9, "mps"
    assert result.mfu is None


LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2",
          "--master-addr=127.0.0.1", "--master-port=0", "--rdzv-backend=c10d",
          "--rdzv-endpoint=127.0.0.1:0"]
PROCESSES = """
import json, os, sys, torch
sys.path.insert(0, sys.argv[1])
from accelerate import PartialState
from sftbook.core import SftbookError
from sftbook.trainer import Trainer, TrainingConfig
from test_trainer import Words, collate, words_loss, words_rows

what, out, size, folder = sys.argv[2:]
torch.manual_seed(0)
model, rows, calls = Words(dropout=0.0 if what == "equal" else 0.5), words_rows(50), []
if what == "broken":
    for row in rows: row["input_ids"] = [i % 19 for i in row["input_ids"]]
    rows[17]["input_ids"] = [19]
    with torch.no_grad(): model.words.weight[19] = float("nan")

def loss(model, batch):
    calls.append(1)
    if what == "killed" and len(calls) == 6: os._exit(1)
    return words_loss(model, batch)

config = TrainingConfig(
    learning_rate=0.05, num_train_epochs=2, per_device_train_batch_size=int(size))
checkpoints = folder if folder != "none" else None
trainer = Trainer(model, loss, collate, config, checkpoints=checkpoints)
try: result = trainer.fit(rows, resume=what == "resumed")
except SftbookError as e: said = str(e)
else:
    losses = [h["loss"] for h in result.state.history]
    said = [losses, model.words.weight.tolist(), result.state.processes]
json.dump(said, open(f"{out}.{PartialState().process_index}", "w"))
if torch.distributed.is_initialized(): torch.distributed.destroy_process_group()
"""


class Processes:
    "Run the script above in one process or in two, and read what each of them wrote."
    def __init__(self, home):
        self.home = home
        (home / "train.py").write_text(PROCESSES, encoding="utf-8")

    def start(self, what, size, folder="none", processes=2):
        launch = LAUNCH if processes == 2 else [sys.executable]
        words = [str(Path(__file__).parent), what, str(self.home / what), str(size), str(folder)]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        return subprocess.Popen([*launch, str(self.home / "train.py"), *words], env=env,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def read(self, process, what):
        said = process.communicate(timeout=120)[0]
        found = sorted(self.home.glob(f"{what}.*"))
        assert process.returncode == 0 and found, said
        return [json.loads(path.read_text(encoding="utf-8")) for path in found]

    def run(self, what, *settings, **more):
        return self.read(self.start(what, *settings, **more), what)


@pytest.fixture
def processes(tmp_path): return Processes(tmp_path)


def test_two_processes_of_eight_rows_are_one_of_sixteen(processes):
    two = processes.run("equal", 8)[0]
    one = processes.run("equal", 16, processes=1)[0]
    np.testing.assert_allclose(one[0], two[0], rtol=1e-4)
    np.testing.assert_allclose(one[1], two[1], atol=1e-4)
    assert (one[2], two[2]) == (1, 2)  # the ceiling of MFU is that of all processes


def test_a_broken_loss_in_one_process_stops_both_with_the_same_words(processes):
    said = processes.run("broken", 8)
    assert said[0] == said[1] and "rows 17" in said[0], said


def test_two_processes_that_were_killed_resume_bit_for_bit(processes, tmp_path):
    straight, killed = processes.start("straight", 8), processes.start("killed", 8, tmp_path / "c")
    assert killed.wait(timeout=120) and straight.wait(timeout=120) == 0
    refused = processes.start("resumed", 16, tmp_path / "c", processes=1)
    assert "processes was 2, now it is 1" in processes.read(refused, "resumed")[0]
    straight = json.loads((tmp_path / "straight.0").read_text())
    assert processes.run("resumed", 8, tmp_path / "c")[0] == straight
