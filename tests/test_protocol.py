"""The task protocol proves itself: a toy tagger and a toy translator go through the same trainer,
evaluation and saved runs, with no line changed there."""
import shutil
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    BartConfig, BartForConditionalGeneration, BertConfig, BertForTokenClassification,
    PreTrainedTokenizerFast)

from sftbook.evaluation.classification import classification_report
from sftbook.evaluation.reports import Report
from sftbook.preprocessing.encoding import pad_batch
from sftbook.tasks.masked_language_modelling import MaskedLanguageModelling
from sftbook.tasks.protocol import Task, fine_tune, predict
from sftbook.tasks.saved_runs import load_run, save_run
from sftbook.tasks.token_classification import TokenClassification
from sftbook.trainer import TrainingConfig

WORDS = [str(i) for i in range(10)]
SPECIAL = ["[PAD]", "[UNK]", "[BOS]", "[EOS]"]


def make_tokenizer(end=False):
    vocabulary = {word: i for i, word in enumerate(SPECIAL + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if end:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A [EOS]", special_tokens=[("[EOS]", 3)])
    names = {f"{name.lower()}_token": f"[{name}]" for name in ("PAD", "UNK", "BOS", "EOS")}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def summed_loss(logits, labels):
    "The sum of the losses of all tokens that have a label, and their number."
    total = nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
    return total, int((labels != -100).sum())


@dataclass
class ToyTagging(Task):
    "Tag each digit as odd or even."

    checkpoint: str = ""
    pipeline_tag = "token-classification"

    @cached_property
    def tokenizer(self):
        return make_tokenizer()

    def as_rows(self, inputs):
        return Dataset.from_dict({"tokens": [text.split() for text in inputs]})

    def encode(self, rows):
        ids = [self.tokenizer.convert_tokens_to_ids(tokens) for tokens in rows["tokens"]]
        if "ner_tags" not in rows.column_names:
            return [dict(input_ids=i) for i in ids]
        return [dict(input_ids=i, labels=list(t)) for i, t in zip(ids, rows["ner_tags"])]

    def collate(self, features):
        return pad_batch(features, {"input_ids": 0, "labels": -100})

    def init_model(self):
        sizes = dict(vocab_size=14, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                     intermediate_size=32, max_position_embeddings=32)
        return BertForTokenClassification(BertConfig(num_labels=2, **sizes))

    def loss(self, model, batch):
        logits = self.infer(model, batch)[0]
        return summed_loss(logits, batch["labels"])

    def infer(self, model, batch):
        mask = batch["attention_mask"]
        return model(input_ids=batch["input_ids"], attention_mask=mask).logits, mask

    def decode(self, outputs):
        logits, mask = outputs
        return [row[: int(m.sum())].tolist() for row, m in zip(logits.argmax(-1), mask)]

    def metrics(self, predictions, rows):
        truth, answers = np.concatenate([*rows["ner_tags"]]), np.concatenate(predictions)
        return classification_report(truth, answers, label_names=["even", "odd"])


@dataclass
class ToyTranslation(Task):
    "Write the digits backwards."

    checkpoint: str = ""
    pipeline_tag = "translation"

    @cached_property
    def tokenizer(self):
        return make_tokenizer(end=True)

    def as_rows(self, inputs):
        return Dataset.from_dict({"translation": [{"en": text} for text in inputs]})

    def encode(self, rows):
        features = []
        for pair in rows["translation"]:
            feature = dict(input_ids=self.tokenizer(pair["en"])["input_ids"])
            if pair.get("zh"):
                feature["labels"] = self.tokenizer(pair["zh"])["input_ids"]
            features.append(feature)
        return features

    def collate(self, features):
        return pad_batch(features, {"input_ids": 0, "labels": -100})

    def init_model(self):
        sizes = dict(vocab_size=14, d_model=48, encoder_layers=1, decoder_layers=1,
                     encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=96,
                     decoder_ffn_dim=96, max_position_embeddings=16)
        tokens = dict(pad_token_id=0, bos_token_id=2, eos_token_id=3, decoder_start_token_id=2,
                      forced_eos_token_id=None)
        return BartForConditionalGeneration(BartConfig(dropout=0.0, **sizes, **tokens))

    def loss(self, model, batch):
        asked = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
        logits = model(**asked).logits
        return summed_loss(logits, batch["labels"])

    def infer(self, model, batch):
        return model.generate(batch["input_ids"], attention_mask=batch["attention_mask"],
                              max_new_tokens=6, num_beams=1, do_sample=False)

    def decode(self, outputs):
        return self.tokenizer.batch_decode(outputs, skip_special_tokens=True)

    def metrics(self, predictions, rows):
        right = [int(p == r["zh"]) for p, r in zip(predictions, rows["translation"])]
        return classification_report([1] * len(right), right, label_names=["wrong", "right"])


def digits(n, low, high, seed):
    rng = np.random.default_rng(seed)
    return [[str(d) for d in rng.integers(0, 10, rng.integers(low, high))] for _ in range(n)]


def tagging_rows(n=120, seed=0):
    tokens, tags = digits(n, 2, 12, seed), []
    for row in tokens:
        tags.append([int(digit) % 2 for digit in row])
    return Dataset.from_dict({"tokens": tokens, "ner_tags": tags})


def translation_rows(n, seed):
    pairs = [{"en": " ".join(row), "zh": " ".join(row[::-1])} for row in digits(n, 2, 4, seed)]
    return Dataset.from_dict({"translation": pairs})


CASES = {
    "tagging": (ToyTagging, tagging_rows(), tagging_rows(40, 1),
                TrainingConfig(learning_rate=1e-2, num_train_epochs=4), 0.95),
    "translation": (ToyTranslation, translation_rows(1500, 0), translation_rows(60, 1),
                    TrainingConfig(learning_rate=4e-3, num_train_epochs=8,
                                   per_device_train_batch_size=32), 0.9),
}


@pytest.mark.parametrize("name", CASES)
def test_a_new_task_trains_and_is_saved(name, tmp_path):
    kind, train, test, config, wanted = CASES[name]
    task = kind()
    tuned = fine_tune(task, train, test.select(range(10)), config)
    predictions = predict(task, tuned.model, test)
    report = task.metrics(predictions, test)
    assert report.metrics["accuracy"].value >= wanted
    save_run(tmp_path / "run", task, tuned.model, report)
    run = load_run(tmp_path / "run")
    inputs = ["1 2 3", "4 5", "9 8 7"]
    assert run.predict(inputs) == predict(task, tuned.model, task.as_rows(inputs))
    assert Report.from_dict(run.report.to_dict()).to_dict() == report.to_dict()


@pytest.mark.parametrize("name", CASES)
def test_predictions_stand_in_the_order_of_the_rows(name):
    kind, _, rows, _, _ = CASES[name]
    task = kind()
    torch.manual_seed(0)
    model = task.init_model().eval()
    together = predict(task, model, rows, batch_size=7)
    assert together == [predict(task, model, rows.select([i]))[0] for i in range(len(rows))]


@pytest.mark.parametrize("name", CASES)
def test_four_passes_of_four_rows_are_one_of_sixteen(name):
    "Targets are tokens, and each pass has another number of them: a mean of means would differ."
    kind, train, _, _, _ = CASES[name]
    task = kind()
    torch.manual_seed(0)
    start = task.init_model()
    for module in start.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    weights = {k: v.clone() for k, v in start.state_dict().items()}
    def trained(**settings):
        "Losses and norms of gradients, update by update."
        start.load_state_dict(weights)
        config = TrainingConfig(learning_rate=1e-3, num_train_epochs=1, **settings)
        tuned = fine_tune(task, train.select(range(64)), config=config, model=start)
        history = tuned.result.state.history
        return [h["loss"] for h in history], [h["grad_norm"] for h in history]

    losses, norms = trained(per_device_train_batch_size=16)
    in_parts = trained(per_device_train_batch_size=4, gradient_accumulation_steps=4)
    np.testing.assert_allclose(losses, in_parts[0], rtol=1e-4)
    np.testing.assert_allclose(norms, in_parts[1], rtol=1e-3)


def test_a_saved_tagger_answers_as_the_one_in_memory_and_plain_transformers_opens_it(
        tiny_checkpoint, tmp_path):
    from transformers import pipeline

    names = ["O", "B-ORG", "I-ORG"]
    features = Features(tokens=List(Value("string")), ner_tags=List(ClassLabel(names=names)))
    tokens = [["the", "bank", "rose"], ["the", "team", "scored", "a", "goal"]]
    tags = [[0, 1, 0], [0, 1, 2, 0, 0]]
    rows = Dataset.from_dict(dict(tokens=tokens, ner_tags=tags), features=features)
    task = TokenClassification.from_rows(rows, checkpoint=str(tiny_checkpoint), max_length=16)
    config = TrainingConfig(learning_rate=1e-2, num_train_epochs=30,
                            per_device_train_batch_size=2)
    tuned = fine_tune(task, rows, config=config)
    predictions = predict(task, tuned.model, rows)
    assert predictions == [["O", "B-ORG", "O"], ["O", "B-ORG", "I-ORG", "O", "O"]]
    run = load_run(save_run(tmp_path / "run", task, tuned.model, task.metrics(predictions, rows)))
    assert run.predict(rows["tokens"]) == predictions and run.report.metrics["f1"].value == 1
    tag = pipeline("token-classification", str(tmp_path / "run"), device="cpu")
    assert [t["entity"] for t in tag("the team scored a goal", ignore_labels=[])] == predictions[1]


def test_a_masked_language_model_is_saved_whole_and_its_masks_are_the_same_after_a_resume(
        tiny_checkpoint, tmp_path):
    texts = ["the striker scored a goal the keeper rose",
             "profit rose and the market fell the bank scored"]
    rows = Dataset.from_dict({"text": texts * 6})
    task = MaskedLanguageModelling(str(tiny_checkpoint), max_length=16)
    config = TrainingConfig(learning_rate=1e-3, num_train_epochs=2, per_device_train_batch_size=2,
                            save_steps=2)
    folder = tmp_path / "checkpoints"
    whole = fine_tune(task, rows, config=config)
    fine_tune(task, rows, config=config, checkpoints=folder)
    kept = sorted(folder.iterdir())
    shutil.rmtree(kept[-1])  # the run was cut off before its last checkpoint
    resumed = fine_tune(task, rows, config=config, checkpoints=folder, resume=True)
    assert resumed.result.messages
    pairs = zip(whole.model.state_dict().values(), resumed.model.state_dict().values())
    assert all(torch.equal(a, b) for a, b in pairs)
    report = task.metrics(predict(task, whole.model, rows), rows)
    again = load_run(save_run(tmp_path / "run", task, whole.model, report))
    assert again.task.metrics(predict(again.task, again.model, rows), rows) == report
