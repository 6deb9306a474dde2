"How a run is trained and watched: losses, schedules, averages, callbacks."
import contextlib
import csv
import json
import math
from types import SimpleNamespace

import forked
import pytest
import torch
from torch import nn

from sftbook.averaging import WeightAverage
from sftbook.callbacks import (
    Callback, Callbacks, LogFile, Memory, Progress, step_record, Tracker)
from sftbook.checkpointing import TrainingState
from sftbook.core import ConfigError
from sftbook.folders import write_manifest
from sftbook.settings import TrainingConfig, learning_rate_factor, plateau_factor
from sftbook.tasks.protocol import fine_tune, predict, task_settings
from sftbook.tasks.saved_runs import load_run, save_run
from sftbook.tasks.text_classification import summed_cross_entropy, TextClassification
from sftbook.tasks.token_classification import TokenClassification

# ---- losses


def tagger_of(scores):
    "A model whose scores of pieces are given."
    class Given(nn.Module):
        def forward(self, input_ids, attention_mask):
            return SimpleNamespace(logits=scores)

    return Given()


def ragged_batch(tags):
    "Two sentences of three words and one; the second is padded; a word without a piece is ignored."
    torch.manual_seed(0)
    starts = torch.tensor([[1, 2, -2], [1, -1, -1]])  # three words have a piece
    labels = torch.tensor([[1, 0, 2], [2, -100, -100]])
    batch = dict(input_ids=torch.ones(2, 4, dtype=torch.long), attention_mask=torch.ones(2, 4),
                 word_starts=starts, labels=labels)
    return torch.randn(2, 4, tags), batch


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("weights", [None, [0.2, 1.0, 4.0]])
def test_ragged_and_ignored_targets_are_divided_by_the_right_number(smoothing, weights):
    scores, batch = ragged_batch(tags=3)
    task = TokenClassification(["O", "B-A", "I-A"], class_weights=weights,
                               label_smoothing=smoothing)
    total, number = task.loss(tagger_of(scores), batch)
    there = torch.stack([scores[0, 1], scores[0, 2], scores[1, 1]])
    right, given = torch.tensor([1, 0, 2]), None if weights is None else torch.tensor(weights)
    mean = nn.functional.cross_entropy(there, right, given, label_smoothing=smoothing)
    assert float(total) / float(number) == pytest.approx(mean.item(), rel=1e-6)
    # torch's own way to ignore padding agrees
    padded = torch.stack([scores[0, 1], scores[0, 2], scores[0, 0], *scores[1, 1:]])
    ignored = torch.tensor([1, 0, -100, 2, -100, -100])
    same = nn.functional.cross_entropy(padded, ignored, given, label_smoothing=smoothing)
    assert mean.item() == pytest.approx(same.item(), rel=1e-6)
    # and it matters: all places as the number would be wrong
    assert abs(float(total) / batch["labels"].numel() - mean.item()) > 0.05


def formula(logits, labels, weights, smoothing):
    "The loss written out, with torch's convention: each part of a target has its class's weight."
    total = 0.0
    for row, label in zip(logits.log_softmax(-1).tolist(), labels.tolist()):
        for c, log_p in enumerate(row):
            target = (1 - smoothing) * (c == label) + smoothing / len(row)
            total -= weights[c] * target * log_p
    return total


def test_a_smoothed_loss_is_the_formula():
    torch.manual_seed(0)
    logits, labels, weights = torch.randn(20, 4), torch.randint(4, (20,)), [0.5, 1.0, 2.0, 3.0]
    total, number = summed_cross_entropy(logits, labels, weights, 0.2)
    assert total.item() == pytest.approx(formula(logits, labels, weights, 0.2), rel=1e-5)
    assert number.item() == pytest.approx(sum(weights[label] for label in labels.tolist()))
    assert total.item() != pytest.approx(formula(logits, labels, weights, 0.19), rel=1e-3)
    total, number = summed_cross_entropy(logits, labels, None, 0.2)
    assert (total.item(), number) == (pytest.approx(formula(logits, labels, [1] * 4, 0.2)), 20)


def test_passes_of_other_sizes_add_up_to_the_same_smoothed_loss():
    torch.manual_seed(0)
    logits, labels = torch.randn(16, 3), torch.randint(3, (16,))
    whole = summed_cross_entropy(logits, labels, [1.0, 2.0, 3.0], 0.1)
    parts = [summed_cross_entropy(logits[a:b], labels[a:b], [1.0, 2.0, 3.0], 0.1)
             for a, b in ((0, 13), (13, 16))]
    for i in range(2):
        assert float(whole[i]) == pytest.approx(sum(float(p[i]) for p in parts), rel=1e-6)


def text_rows():
    from datasets import ClassLabel, Dataset, Features, Value
    texts = ["the striker won the match", "the bank profit rose", "a goal", "oil shares fell"] * 2
    features = Features(text=Value("string"), label=ClassLabel(names=["sport", "business"]))
    return Dataset.from_dict(dict(text=texts, label=[0, 1, 0, 1] * 2), features=features)


def test_a_run_from_before_label_smoothing_is_opened(tiny_checkpoint, tmp_path):
    rows = text_rows()
    task = TextClassification.from_rows(rows, checkpoint=str(tiny_checkpoint), max_length=16,
                                        label_smoothing=0.1)
    model = task.init_model().eval()
    save_run(tmp_path / "run", task, model, task.metrics(predict(task, model, rows), rows))
    assert load_run(tmp_path / "run").task.label_smoothing == 0.1
    old = json.loads((tmp_path / "run" / "task.json").read_text())
    del old["label_smoothing"]
    (tmp_path / "run" / "task.json").write_text(json.dumps(old))
    (tmp_path / "run" / "MANIFEST.json").unlink()
    write_manifest(tmp_path / "run")
    assert load_run(tmp_path / "run").task.label_smoothing == 0.0
    assert task_settings(task)["label_smoothing"] == 0.1


@pytest.mark.filterwarnings("ignore")
def test_smoothing_reaches_the_training(tiny_checkpoint):
    def surest(smoothing):
        torch.manual_seed(0)
        rows = text_rows()
        task = TextClassification.from_rows(rows, checkpoint=str(tiny_checkpoint), max_length=16,
                                            label_smoothing=smoothing)
        config = TrainingConfig(learning_rate=1e-2, num_train_epochs=30, bf16=False)
        return predict(task, fine_tune(task, rows, config=config).model, rows).probabilities.max()

    assert surest(0.0) > 0.99 > 0.95 > surest(0.3)


# ---- schedules


def test_a_plateau_is_the_same_whether_asked_once_or_after_each_evaluation():
    config = TrainingConfig(lr_scheduler_type="reduce_lr_on_plateau", warmup_steps=3,
                            metric_for_best_model="f1", lr_scheduler_kwargs=dict(factor=0.1))
    values = [0.5, 0.6, 0.6, 0.55, 0.6, 0.7, 0.7, math.nan, 0.1]
    shares = [learning_rate_factor(10 + i, 100, config, values[:i], True)
              for i in range(len(values) + 1)]
    assert shares == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01])
    assert learning_rate_factor(1, 100, config, values, True) == 1 / 3  # still warming up
    assert plateau_factor([], True) == 1.0


def test_settings_that_depend_on_each_other_are_refused_together():
    with pytest.raises(ConfigError) as e:
        TrainingConfig(lr_scheduler_type="reduce_lr_on_plateau", eval_steps=0, ema_decay=1.5,
                       lr_scheduler_kwargs=dict(power=2), layer_decay=-1, save_seconds=0.0)
    for said in ("needs metric_for_best_model", "eval_steps", "ema_decay must be a number above 0",
                 "power", "layer_decay", "save_seconds"):
        assert said in str(e.value)


def test_settings_can_be_kept_as_json():
    from dataclasses import asdict
    config = TrainingConfig(lr_scheduler_type="reduce_lr_on_plateau", metric_for_best_model="f1",
                            lr_scheduler_kwargs=dict(patience=3), ema_decay=0.9, eval_steps=10)
    assert TrainingConfig(**json.loads(json.dumps(asdict(config)))) == config


# ---- the average of the weights


def test_a_tied_weight_is_averaged_once_and_stays_tied():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    average = WeightAverage(model, 0.5)
    assert list(average.averages) == ["0.weight"]
    with torch.no_grad():
        model[0].weight.fill_(7.0)
    average.update(model)
    with average.swap(model):
        assert model[1].weight is model[0].weight and model[1].weight[0, 0] == 7.0


def test_the_optimizer_goes_on_with_its_own_weights_after_a_swap():
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    average, before = WeightAverage(model, 0.9), model.weight.detach().clone()
    for _ in range(3):
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        average.update(model)
    held = average.averages["weight"].clone()
    with average.swap(model):
        assert torch.equal(model.weight, held)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert torch.equal(average.averages["weight"], held)  # nothing has written into it
    assert not torch.equal(model.weight, before) and not torch.equal(model.weight, held)


# ---- callbacks

STEP = dict(seconds=0.1, rows=8, tokens=90)


def run_steps(callbacks, state, until, evaluate=()):
    watchers = Callbacks(callbacks)
    watchers.on_train_begin(state, until)
    while state.step < until:
        state.step += 1
        watchers.on_step_end(state, step_record(state.step, 1 / state.step, 2.0, 1.0, 1e-3, **STEP))
        if state.step in evaluate:
            state.evaluations.append(dict(step=state.step, f1=0.5))
            watchers.on_evaluate(state, dict(f1=0.5))
    watchers.on_train_end(state)
    return watchers.messages


def rows_of(path):
    text = path.read_text()
    if path.suffix == ".csv":
        return list(csv.DictReader(text.splitlines()))
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize("cut", [0, 1, 30])
def test_a_resumed_log_is_that_of_a_run_that_was_not_killed(tmp_path, suffix, cut):
    straight, killed = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    run_steps([LogFile(straight)], TrainingState(), 9, evaluate=(3, 6, 9))
    run_steps([LogFile(killed)], TrainingState(), 8, evaluate=(3, 6))
    killed.write_bytes(killed.read_bytes()[:len(killed.read_bytes()) - cut])
    # the checkpoint of step 6 was written before its evaluation
    state = TrainingState(step=6, evaluations=[dict(step=3, f1=0.5)])
    state.evaluations.append(dict(step=6, f1=0.5))
    run_steps([LogFile(killed)], state, 9, evaluate=(9,))
    assert rows_of(straight) == rows_of(killed)


def test_an_evaluation_that_the_checkpoint_does_not_hold_is_written_once(tmp_path):
    log = tmp_path / "log.csv"
    run_steps([LogFile(log)], TrainingState(), 6, evaluate=(3, 6))
    state = TrainingState(step=6, evaluations=[dict(step=3, f1=0.5)])  # killed while measuring
    watchers = Callbacks([LogFile(log)])
    watchers.on_train_begin(state, 6)
    watchers.on_evaluate(state, dict(f1=0.5))
    watchers.on_train_end(state)
    assert [row["step"] for row in rows_of(log) if row["eval_f1"]] == ["3", "6"]


def test_a_log_that_begins_with_nothing_whole_is_not_taken_for_one(tmp_path):
    log = tmp_path / "notes.jsonl"
    log.write_text("no line end")
    with pytest.raises(ConfigError, match="no log"):
        run_steps([LogFile(log)], TrainingState(), 2)
    assert log.read_text() == "no line end"
    log.write_text("")
    run_steps([LogFile(log)], TrainingState(), 2)
    assert len(rows_of(log)) == 2


def test_a_log_whose_folder_vanishes_costs_no_run(tmp_path, capsys):
    log = LogFile(tmp_path / "logs" / "log.csv")
    state = TrainingState()

    class Vandal(Callback):
        def on_step_end(self, state, record):
            if state.step == 2:
                log.file.close()

    seen = Memory()
    messages = run_steps([Vandal(), log, seen], state, 5)
    assert state.step == 5 and seen.most > 0
    assert len(messages) == 1 and "LogFile was dropped after step 2" in messages[0]
    assert capsys.readouterr().err.count("LogFile was dropped") == 1


def test_a_step_without_a_target_is_logged_and_shown(tmp_path):
    record = step_record(1, None, None, 1.0, 1e-3, **STEP)
    log = LogFile(tmp_path / "log.csv")
    watchers = Callbacks([Progress(show=False), log])
    watchers.on_train_begin(TrainingState(), 1)
    watchers.on_step_end(TrainingState(step=1), record)
    watchers.on_train_end(TrainingState(step=1))
    assert not watchers.messages
    assert rows_of(tmp_path / "log.csv")[0]["loss"] == ""


def test_what_a_callback_draws_changes_nothing():
    class Gambler(Callback):
        def on_evaluate(self, state, values):
            torch.rand(5)
            raise RuntimeError("and fails")

    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with contextlib.redirect_stderr(None):
        Callbacks([Gambler()]).on_evaluate(TrainingState(), {})
    assert torch.equal(torch.rand(3), expected)


def test_another_run_sets_the_log_aside_and_loses_nothing(tmp_path):
    log = tmp_path / "log.csv"
    for steps in (2, 3, 4):
        run_steps([LogFile(log)], TrainingState(), steps)
    kept = [len(rows_of(tmp_path / name)) for name in ("log.1.csv", "log.2.csv", "log.csv")]
    assert kept == [2, 3, 4]


PIPED = """
import sys
from sftbook.callbacks import Callbacks, Progress, step_record
from sftbook.checkpointing import TrainingState
watchers = Callbacks([Progress(*map(eval, sys.argv[1:]))])
watchers.on_train_begin(TrainingState(), 3)
for step in (1, 2, 3):
    record = step_record(step, 0.5, 1., 1., 1e-3, seconds=0.1, rows=8, tokens=90)
    watchers.on_step_end(TrainingState(step=step), record)
watchers.on_train_end(TrainingState(step=3))
"""


@pytest.mark.parametrize("asked, drawn", [([], False), (["True"], True), (["False"], False)])
def test_a_bar_is_quiet_where_its_output_goes_into_a_file(asked, drawn):
    done = forked.code(PIPED, *asked)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "" and ("3/3 steps" in done.stderr) == drawn == bool(done.stderr)


def test_a_tracker_gets_steps_and_evaluations_and_is_finished():
    from accelerate.tracking import GeneralTracker

    class Kept(GeneralTracker):
        name, requires_logging_directory, main_process_only = "kept", False, False
        tracker = None

        def store_init_configuration(self, values):
            self.settings = values

        def log(self, values, step=None):
            got.append((step, values))

        def finish(self):
            got.append("finished")

    got = []
    run_steps([Tracker(Kept(), settings=dict(seed=1))], TrainingState(), 2, evaluate=(2,))
    assert [one[0] for one in got[:-1]] == [1, 2, 2] and got[-1] == "finished"
    assert got[0][1]["train/clipped_norm"] == 1.0 and got[2][1] == {"eval/f1": 0.5}
    with pytest.raises(ConfigError, match="choose one of"):
        Tracker("none of them")


def test_a_tracker_that_is_not_installed_is_refused_with_its_command(monkeypatch):
    from accelerate import tracking
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: [])
    with pytest.raises(ConfigError, match="pip install comet-ml"):
        Tracker("comet_ml")


def test_curves_of_a_long_run_stay_short_and_true():
    from sftbook.loss_plot import LossPlot
    plot = LossPlot(per_second=1e9, most=50, show=False)
    run_steps([plot], TrainingState(), 1000, evaluate=(500, 1000))
    steps, losses = zip(*plot.series["loss"])
    assert len(steps) <= 51 and steps[-1] > 950 and losses[0] > losses[-1]
    assert plot.series["eval_f1"] == [[500.0, 0.5], [1000.0, 0.5]]
    plot.close()
