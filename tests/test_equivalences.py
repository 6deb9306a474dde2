"""What must not change a result, for every task: passes, the order of rows, padding, batches.

Each task has a toy model and rows whose lengths and numbers of targets differ from row to row.
"""
import copy

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value

from sftbook.core import TrainingError
from sftbook.tasks.masked_language_modelling import MaskedLanguageModelling
from sftbook.tasks.multi_label import MultiLabelClassification
from sftbook.tasks.protocol import fine_tune, infer_rows
from sftbook.tasks.text_classification import TextClassification
from sftbook.tasks.token_classification import TokenClassification
from sftbook.trainer import TrainingConfig

WORDS = "striker goal match keeper coach team shares profit bank market oil rose fell won".split()
TOKENS = [[WORDS[i * k % len(WORDS)] for k in range(1, 2 + i % 9)] for i in range(14)]
TOKENS[5][0] = "cup"  # only this row has it
TEXTS, NAMES = [" ".join(row) for row in TOKENS], ["no", "yes", "maybe"]


def of_texts(column, feature, values):
    columns = Features({"text": Value("string"), column: feature})
    return Dataset.from_dict({"text": TEXTS, column: values}, columns)


def one_label(checkpoint, **settings):
    rows = of_texts("label", ClassLabel(names=NAMES), [i % 3 for i in range(14)])
    settings |= dict(checkpoint=checkpoint, max_length=16)
    return TextClassification.from_rows(rows, **settings), rows


def weighted(checkpoint):
    return one_label(checkpoint, class_weights=[0.25, 1.0, 4.0])


def any_labels(checkpoint):
    rows = of_texts("labels", List(ClassLabel(names=NAMES)), [[*range(i % 4)] for i in range(14)])
    return MultiLabelClassification.from_rows(rows, checkpoint=checkpoint, max_length=16), rows


def tags(checkpoint):
    names = ["O", "B-CLUB", "I-CLUB"]
    columns = Features(tokens=List(Value("string")), ner_tags=List(ClassLabel(names=names)))
    found = [[(i + k) % 2 for k in range(len(row))] for i, row in enumerate(TOKENS)]
    rows = Dataset.from_dict({"tokens": TOKENS, "ner_tags": found}, columns)
    return TokenClassification.from_rows(rows, checkpoint=checkpoint, max_length=16), rows


def hidden_words(checkpoint):
    rows = Dataset.from_dict({"text": TEXTS})
    return MaskedLanguageModelling(checkpoint=checkpoint, max_length=9, mask_rate=0.4), rows


TASKS = {make.__name__: make for make in (one_label, weighted, any_labels, tags, hidden_words)}


@pytest.fixture(params=TASKS)
def made(request, tiny_checkpoint):
    "A task, its rows, and a model without dropout."
    task, rows = TASKS[request.param](str(tiny_checkpoint))
    torch.manual_seed(0)
    model = task.init_model()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return task, rows, model


def trained(made, **settings):
    task, rows, model = made
    usual = dict(learning_rate=1e-3, num_train_epochs=3, max_grad_norm=0.5, bf16=False)
    config = TrainingConfig(**usual | settings)
    return fine_tune(task, rows, config=config, model=copy.deepcopy(model))


def apart(a, b):
    "The largest difference of two models; softmax cancels the biases of keys, so Adam has noise."
    pairs = zip(a.named_parameters(), b.parameters(), strict=True)
    return max((p - q).abs().max().item() for (name, p), q in pairs if "key.bias" not in name)


def test_four_passes_of_four_rows_are_one_of_sixteen(made):
    whole = trained(made, per_device_train_batch_size=16)
    parts = trained(made, per_device_train_batch_size=4, gradient_accumulation_steps=4)
    losses = [[h["loss"] for h in one.result.state.history] for one in (whole, parts)]
    assert len(losses[0]) >= 3 and apart(whole.model, made[2]) > 1e-3
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert apart(whole.model, parts.model) < 2e-5


def targeted(made):
    "Features with their targets, drawn once where a task draws them."
    task, rows, _ = made
    features = task.encode(rows)
    if task.augment is None:
        return features
    return [task.augment(f, np.random.default_rng(i)) for i, f in enumerate(features)]


def gradients(made, passes, features, by_means=False):
    "Loss and gradients of one step of several passes; rightly, or as a mean of means."
    task, _, model = made
    model.zero_grad()
    sums = [task.loss(model, task.collate([features[i] for i in rows])) for rows in passes]
    targets = sum(float(n) for _, n in sums)
    total = sum(loss / n for loss, n in sums) / len(sums) if by_means else (
        sum(loss for loss, _ in sums) / targets)
    total.backward()
    grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return torch.cat([total.detach().reshape(1), *grads])


def test_another_order_and_other_company_give_the_same_loss_and_gradients(made):
    features = targeted(made)
    given = list(range(len(features)))
    by_length = sorted(given, key=lambda i: len(features[i]["input_ids"]))
    shuffled = np.random.default_rng(1).permutation(given).tolist()
    wanted = gradients(made, [given], features)
    for order in (by_length, shuffled, given[::-1]):
        passes = [order[k:k + 4] for k in range(0, len(order), 4)]
        found = gradients(made, passes, features)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    off = gradients(made, passes, features, by_means=True)
    assert (off - wanted).abs().max() > 1e-3  # what the usual mistake would do here


def differ(a, b):
    "Whether two answers are not the same: tags, or numbers but for the format of the products."
    if isinstance(a, np.ndarray):
        return not np.allclose(a, b, atol=0.02)
    return a != b


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_answers_come_in_the_order_of_the_rows(made, batch_size):
    task, rows, model = made
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(10 if p.ndim == 2 else 1)  # a model of decided answers, no two alike
    answers = infer_rows(task, model.eval(), rows, task.decode, batch_size)
    with torch.inference_mode():
        alone = [task.decode(task.infer(model, task.collate([f])))[0] for f in task.encode(rows)]
    assert len(answers) == len(alone)
    assert [i for i, (a, b) in enumerate(zip(answers, alone)) if differ(a, b)] == []
    moved = sum(differ(a, b) for a, b in zip(answers[1:], alone))
    assert moved > len(alone) / 2  # what an order that is off by one would do


def test_a_loss_that_is_not_finite_leaves_every_weight_as_it_was(made):
    task, rows, model = made
    word = task.tokenizer.convert_tokens_to_ids("cup")
    masks = isinstance(task, MaskedLanguageModelling)
    with torch.no_grad():
        broken = task.tokenizer.mask_token_id if masks else word
        model.get_input_embeddings().weight[broken] = float("nan")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = TrainingConfig(per_device_train_batch_size=16, warmup_steps=0, bf16=False)
    with pytest.raises(TrainingError, match="not a finite number") as error:
        fine_tune(task, rows, config=config, model=model)
    assert masks or "rows 0, 1, 2, 3, 4, 5" in str(error.value)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(v.nan_to_num(7), after[k].nan_to_num(7)) for k, v in before.items())


def test_only_the_rows_of_the_broken_pass_are_named(made):
    task, rows, model = made
    if isinstance(task, MaskedLanguageModelling):
        pytest.skip("its rows are packed: a piece is no row, and what is hidden is drawn")
    with torch.no_grad():
        word = task.tokenizer.convert_tokens_to_ids("cup")
        model.get_input_embeddings().weight[word] = float("nan")
    config = TrainingConfig(per_device_train_batch_size=1, warmup_steps=0, bf16=False)
    with pytest.raises(TrainingError, match=r"rows 5 \("):
        fine_tune(task, rows, config=config, model=model)
