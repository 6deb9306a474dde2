"What a run does besides the loop, as behaviour: evaluations between epochs, averages, watchers."
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_trainer import Words, collate, same, words_loss, words_rows
from transformers import BertConfig, BertForSequenceClassification

from sftbook.callbacks import Callback, LogFile
from sftbook.core import CheckpointError, ConfigError, TrainingError
from sftbook.tasks.protocol import fine_tune, predict
from sftbook.tasks.text_classification import TextClassification
from sftbook.trainer import Trainer, TrainingConfig

USUAL = TrainingConfig(learning_rate=0.05, num_train_epochs=4, per_device_train_batch_size=8,
                       eval_steps=3, metric_for_best_model="score", bf16=False)


def score(model):
    return {"score": -model.words.weight.square().sum().item()}


def fit(config=USUAL, stop=None, resume=False, evaluate=score, **more):
    "Train a fresh model of eight steps an epoch; somebody stops it after `stop` calls of the loss."
    torch.manual_seed(0)
    model, calls = Words(dropout=0.3), []

    def loss(model, batch):
        calls.append(1)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return words_loss(model, batch)

    trainer = Trainer(model, loss, collate, config, evaluate=evaluate, **more)
    return model, trainer.fit(words_rows(), resume=resume)


def measured(result):
    return [e["step"] for e in result.state.evaluations]


def test_evaluations_between_epochs_come_every_so_many_steps_and_at_the_end():
    assert measured(fit()[1]) == [*range(3, 31, 3), 32]
    assert measured(fit(replace(USUAL, eval_steps=8))[1]) == [8, 16, 24, 32]
    assert measured(fit(replace(USUAL, eval_steps=None))[1]) == [8, 16, 24, 32]


SETTINGS = {
    "between epochs": {}, "average": dict(ema_decay=0.9),
    "plateau": dict(lr_scheduler_type="reduce_lr_on_plateau",
                    lr_scheduler_kwargs=dict(factor=0.3, patience=0)),
    "patience": dict(early_stopping_patience=9), "by the clock": dict(save_seconds=1e-9)}


@pytest.mark.parametrize("stop", [4, 10, 13, 27])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_that_was_stopped_resumes_bit_for_bit(tmp_path, name, stop):
    config = replace(USUAL, save_steps=5, **SETTINGS[name])
    whole, straight = fit(config)
    with pytest.raises(KeyboardInterrupt):
        fit(config, stop, checkpoints=tmp_path)
    resumed, result = fit(config, checkpoints=tmp_path, resume=True)
    assert same(whole, resumed) and result.state.evaluations == straight.state.evaluations
    assert result.state.history == straight.state.history


def test_patience_ends_a_run_in_the_middle_of_an_epoch_and_a_resume_does_not_go_on(tmp_path):
    values = iter([1.0, 2.0, 1.5, 1.5] + [9.0] * 9)
    config = replace(USUAL, early_stopping_patience=2)
    model, result = fit(config, evaluate=lambda _: {"score": next(values)}, checkpoints=tmp_path)
    assert (result.state.step, result.state.best_step) == (12, 6)
    again, result = fit(config, evaluate=score, checkpoints=tmp_path, resume=True)
    assert result.state.step == 12 and same(model, again)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_evaluation_that_fails_between_epochs_is_done_by_the_resume(tmp_path, error):
    calls = []

    def failing(model):
        calls.append(1)
        if len(calls) == 4: # after step 12, in the second epoch
            raise error
        return score(model)

    whole, straight = fit()
    with pytest.raises(error):
        fit(evaluate=failing, checkpoints=tmp_path)
    resumed, result = fit(checkpoints=tmp_path, resume=True)
    assert "resumed after step 12" in result.messages[0]
    assert measured(result) == measured(straight) and same(whole, resumed)


def test_what_is_measured_and_kept_is_the_average():
    seen = []

    def watching(model):
        seen.append(model.words.weight.detach().clone())
        return score(model)

    config = replace(USUAL, ema_decay=0.9, eval_steps=None, metric_for_best_model=None)
    model, _ = fit(config, evaluate=watching)
    plain, _ = fit(replace(config, ema_decay=None))
    assert torch.equal(seen[-1], model.words.weight) and not same(model, plain)
    assert not torch.equal(seen[0], seen[-1])


class Noting(Callback):
    def __init__(self):
        self.seen = []

    def on_train_begin(self, state, total):
        self.seen.append(("begin", state.step, total))

    def on_step_end(self, state, record):
        self.seen.append(("step", record["step"]))

    def on_evaluate(self, state, values):
        self.seen.append(("evaluate", state.step))

    def on_train_end(self, state):
        self.seen.append(("end", state.step))


def test_who_watches_is_called_in_order_and_to_the_end_also_of_a_broken_run(tmp_path):
    watching, config = Noting(), replace(USUAL, num_train_epochs=1)
    fit(config, callbacks=[watching])
    steps = [("step", i) for i in range(1, 9)]
    measured = [("evaluate", i) for i in (3, 6, 8)]
    order = sorted([*steps, *measured], key=lambda one: (one[1], one[0] == "evaluate"))
    assert watching.seen == [("begin", 0, 8), *order, ("end", 8)]
    watching = Noting()
    with pytest.raises(KeyboardInterrupt):
        fit(config, stop=4, callbacks=[watching])
    assert watching.seen[-1] == ("end", 3)


def test_a_log_that_cannot_be_written_costs_no_step(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    log = LogFile(tmp_path / "log.csv")
    monkeypatch.setattr(log, "on_step_end", full)
    whole, _ = fit()
    model, result = fit(callbacks=[log])
    assert same(whole, model) and any("LogFile was dropped" in m for m in result.messages)


def bert():
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(
        vocab_size=200, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=32, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.0))


def bert_loss(model, batch):
    labels = batch.pop("labels")
    logits = model(**batch).logits
    return torch.nn.functional.cross_entropy(logits, labels, reduction="sum"), len(labels)


@pytest.mark.parametrize("settings", [dict(gradual_unfreezing=True), dict(layer_decay=0.5), {}])
def test_layers_that_learn_later_or_slower_resume_bit_for_bit(tmp_path, settings):
    config = TrainingConfig(learning_rate=0.01, num_train_epochs=4, save_steps=3, bf16=False,
                            **settings)
    calls = []

    def stopping(model, batch):
        calls.append(1)
        if len(calls) == 7: # in the second epoch
            raise KeyboardInterrupt
        return bert_loss(model, batch)

    whole, stopped = bert(), bert()
    Trainer(whole, bert_loss, collate, config).fit(words_rows())
    with pytest.raises(KeyboardInterrupt):
        Trainer(stopped, stopping, collate, config, checkpoints=tmp_path).fit(words_rows())
    resumed = bert()
    going_on = Trainer(resumed, bert_loss, collate, config, checkpoints=tmp_path)
    going_on.fit(words_rows(), resume=True)
    assert same(whole, resumed) and all(p.requires_grad for p in whole.parameters())


def test_gradual_unfreezing_begins_with_the_head():
    model, start, seen = bert(), bert(), []

    def watching(model):
        moved = {name for (name, p), q in zip(model.named_parameters(), start.parameters())
                 if not torch.equal(p, q)}
        seen.append(moved)
        return {}

    config = TrainingConfig(learning_rate=0.01, num_train_epochs=4, gradual_unfreezing=True)
    Trainer(model, bert_loss, collate, config, evaluate=watching).fit(words_rows())
    assert not any("embeddings" in name or "layer.0" in name for name in seen[0])
    assert any("classifier" in name for name in seen[0]) and seen[0] < seen[1] <= seen[2]
    assert "bert.embeddings.word_embeddings.weight" in seen[-1]


def test_a_kernel_that_is_named_is_used():
    kernels = set()

    def noting(model, batch):
        kernels.add(model.config._attn_implementation)
        return bert_loss(model, batch)

    config = TrainingConfig(num_train_epochs=1, attn_implementation="eager")
    Trainer(bert(), noting, collate, config).fit(words_rows())
    assert kernels == {"eager"}


def test_a_broken_loss_names_its_rows_with_a_moving_average_too():
    model = Words()
    with torch.no_grad():
        model.words.weight[3] = float("nan")
    config = TrainingConfig(ema_decay=0.9)
    with pytest.raises(TrainingError, match="training rows"):
        Trainer(model, words_loss, collate, config).fit(words_rows())


# ---- what learns, by one word

def news(n=40):
    from datasets import ClassLabel, Dataset, Features, Value

    words = "striker goal match keeper coach team shares profit bank market oil rose fell".split()
    texts = [" ".join(words[(i * k) % len(words)] for k in range(1, 3 + i % 5)) for i in range(n)]
    columns = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    return Dataset.from_dict({"text": texts, "label": [i % 2 for i in range(n)]}, columns)


def task_of(checkpoint):
    return TextClassification.from_rows(news(), checkpoint=str(checkpoint), max_length=16)


def tuned(checkpoint, trained, config, **more):
    return fine_tune(task_of(checkpoint), news(), news(12), config, trained=trained, **more)


class Stop(Callback):
    "Ends a run after a step as somebody at the keyboard does."
    def __init__(self, after):
        self.after = after

    def on_step_end(self, state, record):
        if record["step"] == self.after:
            raise KeyboardInterrupt


STEPS = TrainingConfig(learning_rate=1e-2, num_train_epochs=3, per_device_train_batch_size=8,
                       save_steps=2, bf16=False, metric_for_best_model="accuracy")


@pytest.mark.parametrize("trained", ["full", "head", "lora"])
def test_whatever_learns_resumes_and_is_a_plain_model(tiny_checkpoint, tmp_path, trained):
    whole = tuned(tiny_checkpoint, trained, STEPS)
    with pytest.raises(KeyboardInterrupt):
        tuned(tiny_checkpoint, trained, STEPS, checkpoints=tmp_path, callbacks=[Stop(8)])
    resumed = tuned(tiny_checkpoint, trained, STEPS, checkpoints=tmp_path, resume=True)
    assert same(whole.model, resumed.model)
    plain = task_of(tiny_checkpoint).init_model()
    assert list(whole.model.state_dict()) == list(plain.state_dict())
    body = [torch.equal(a, b) for a, b in zip(whole.model.base_model.parameters(),
                                              plain.base_model.parameters())]
    assert all(body) == (trained == "head")
    rows = predict(whole.task, whole.model, news(12))
    assert rows.probabilities.shape == (12, 2)


def test_a_run_does_not_resume_as_another_kind(tiny_checkpoint, tmp_path):
    tuned(tiny_checkpoint, "lora", STEPS, checkpoints=tmp_path)
    with pytest.raises((ConfigError, CheckpointError)):
        tuned(tiny_checkpoint, "full", STEPS, checkpoints=tmp_path, resume=True)


def test_a_head_does_not_go_on_with_another_body(tiny_checkpoint, tmp_path):
    other = shutil.copytree(tiny_checkpoint, tmp_path / "other")
    tuned(other, "head", STEPS, checkpoints=tmp_path / "run")
    weights = load_file(other / "model.safetensors")
    weights["encoder.layer.0.output.dense.bias"] += 1e-3
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="body|rows"):
        tuned(other, "head", STEPS, checkpoints=tmp_path / "run", resume=True)
