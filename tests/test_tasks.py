"What a task must not get wrong, on models that train in a second. Each test is named after what broke."
import json
import re
import shlex
import shutil

import numpy as np
import pytest
import transformers as tf
from datasets import ClassLabel, Dataset, Features, List, Value

from sklearn.linear_model import LogisticRegression

from sftbook.core import CheckpointError, ConfigError, DataError, SftbookError, TrainingError
from sftbook.folders import write_manifest
from sftbook.evaluation.classification import classification_report
from sftbook.evaluation.entities import entity_report
from sftbook.model import output_layer
from sftbook.rows import load_rows
from sftbook.spans import split_words
from sftbook.tasks.masked_language_modelling import MaskedLanguageModelling, masked_report
from sftbook.tasks.protocol import fine_tune, predict
from sftbook.tasks.saved_runs import load_run, save_run
from sftbook.tasks.text_classification import TextClassification, fit_head, pooled_features
from sftbook.tasks.token_classification import TokenClassification, iob2_rows
from sftbook.trainer import TrainingConfig

TEXTS = ["the striker scored a goal", "the keeper won the match", "the coach won the cup", "profit rose and shares fell", "the bank fell", "oil profit rose"]
ONCE = TrainingConfig(num_train_epochs=1, learning_rate=1e-3)


def text_rows(labels=("sport", "business"), texts=TEXTS):
    features = Features(text=Value("string"), label=ClassLabel(names=list(labels)))
    return Dataset.from_dict({"text": texts, "label": [0] * 3 + [1] * (len(texts) - 3)}, features=features)


@pytest.fixture(scope="module")
def task(tiny_checkpoint):
    return TextClassification.from_rows(text_rows(), checkpoint=str(tiny_checkpoint), max_length=16)


# --- the best epoch


@pytest.mark.parametrize("name, meant", [("f1", "f1_macro"), ("eval_accuracy", "accuracy"), ("logloss", "log_loss")])
def test_an_unknown_best_metric_is_refused_before_anything_is_loaded(name, meant, task, monkeypatch):
    monkeypatch.setattr(TextClassification, "init_model", lambda self: pytest.fail("the model was loaded"))
    config = TrainingConfig(metric_for_best_model=name, early_stopping_patience=1)
    with pytest.raises(ConfigError) as e:
        fine_tune(task, text_rows(), text_rows(), config)
    assert name in str(e.value) and meant in str(e.value) and "log_loss" in str(e.value)


def test_the_epoch_with_the_lowest_log_loss_is_the_best_one(task):
    config = TrainingConfig(num_train_epochs=4, learning_rate=3e-3, metric_for_best_model="log_loss")
    result = fine_tune(task, text_rows(), text_rows(), config).result
    losses = {e["step"]: e["log_loss"] for e in result.state.evaluations}
    assert len(set(losses.values())) > 1 and result.state.best_step == min(losses, key=losses.get)


def test_early_stopping_without_validation_rows_is_refused_before_the_model_is_loaded(task, monkeypatch):
    monkeypatch.setattr(TextClassification, "init_model", lambda self: pytest.fail("the model was loaded"))
    with pytest.raises(ConfigError, match="validation rows"):
        fine_tune(task, text_rows(), config=TrainingConfig(metric_for_best_model="accuracy", early_stopping_patience=1))


def test_directions_name_what_the_reports_hold():
    probabilities = np.eye(2)[[0, 0, 1, 1]] * 0.8 + 0.1
    reports = {TextClassification: classification_report([0, 0, 1, 1], [0, 0, 1, 1], probabilities),
               TokenClassification: entity_report([["B-A", "O"]], [["B-A", "O"]]),
               MaskedLanguageModelling: masked_report(np.array([[1.0, 1, 2], [2.0, 0, 2]]))}
    for kind, report in reports.items():
        assert kind.directions.keys() == report.metrics.keys()
        losses = {name for name, more in kind.directions.items() if not more}
        assert losses == {"log_loss", "brier", "ece", "loss", "perplexity"} & set(report.metrics)


def test_a_broken_step_names_the_lines_of_the_file_and_not_positions(task, tmp_path):
    labels = ["sport"] * 3 + ["business"] * 3
    lines = [f"{text},{label}" for text, label in zip(TEXTS, labels)]
    (tmp_path / "a.csv").write_text("\n".join(["text,label", "", *lines]))  # an empty line before
    rows, model = load_rows(tmp_path / "a.csv"), task.init_model()
    model.get_input_embeddings().weight.data[task.tokenizer("keeper")["input_ids"][1]] = np.nan
    with pytest.raises(TrainingError, match="a.csv, training rows at line 4:"):
        fine_tune(task, rows, config=TrainingConfig(per_device_train_batch_size=1), model=model)


# --- heads


SIZES = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, pad_token_id=0)
BODIES = {"Electra": SIZES | dict(embedding_size=16), "Roberta": SIZES, "DistilBert": dict(dim=16, n_layers=1, n_heads=2, hidden_dim=16, pad_token_id=0),
          "GPT2": dict(n_embd=16, n_layer=1, n_head=2, pad_token_id=0, bos_token_id=2, eos_token_id=3), "Llama": SIZES | dict(num_key_value_heads=2)}


@pytest.fixture(scope="module", params=BODIES)
def body(request, tiny_checkpoint, tmp_path_factory):
    "A checkpoint of another architecture."
    folder = tmp_path_factory.mktemp(request.param)
    shutil.copytree(tiny_checkpoint, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    config = getattr(tf, f"{request.param}Config")(vocab_size=40, max_position_embeddings=40, **BODIES[request.param])
    getattr(tf, f"{request.param}Model")(config).save_pretrained(folder)
    return folder


def test_every_architecture_trains_with_and_without_the_frozen_start(body, tmp_path):
    rows = text_rows()
    task = TextClassification.from_rows(rows, checkpoint=str(body), max_length=16)
    model = task.init_model()
    features = pooled_features(task, model, rows)
    fit_head(model, features, rows["label"], C=1e6)
    theirs = LogisticRegression(C=1e6, max_iter=5000, fit_intercept=output_layer(model).bias is not None).fit(features, rows["label"])
    assert np.allclose(predict(task, model, rows).probabilities, theirs.predict_proba(features), atol=1e-3)
    for start in (model, None):
        tuned = fine_tune(task, rows, config=ONCE, model=start)
    answers = predict(task, tuned.model, rows)
    run = load_run(save_run(tmp_path / "run", task, tuned.model, task.metrics(answers, rows)))
    assert np.allclose(run.predict(TEXTS).probabilities, answers.probabilities, atol=1e-6)


def test_features_of_a_decoder_are_those_of_its_last_token_and_not_of_its_padding(body):
    task = TextClassification.from_rows(text_rows(), checkpoint=str(body), max_length=16)
    model = task.init_model().eval()
    together = pooled_features(task, model, text_rows())
    alone = np.concatenate([pooled_features(task, model, text_rows().select([i])) for i in range(len(TEXTS))])
    assert np.allclose(together, alone, atol=1e-5)


def test_a_class_without_training_rows_is_never_named_and_the_result_says_so(body):
    rows = text_rows(("sport", "business", "weather"))
    task = TextClassification.from_rows(rows, checkpoint=str(body), max_length=16)
    model = task.init_model()
    fit_head(model, pooled_features(task, model, rows), rows["label"])
    assert 2 not in predict(task, model, rows).labels
    enough = TrainingConfig(num_train_epochs=20, learning_rate=1e-2)  # from a head at random
    tuned = fine_tune(task, rows, config=enough)
    assert 2 not in predict(task, tuned.model, rows).labels and "weather" in tuned.result.messages[-1]


def test_one_class_is_no_head(task):
    model = task.init_model()
    with pytest.raises(DataError, match="two classes"):
        fit_head(model, np.ones((2, 32)), [1, 1])


@pytest.mark.parametrize("length, allowed", [(0, "max_length=3"), (-1, "max_length=3"), (2, "max_length=3"), (65, "max_length=64")])
def test_lengths_that_the_model_cannot_read_are_refused_before_it_is_loaded(length, allowed, tiny_checkpoint, monkeypatch):
    monkeypatch.setattr("sftbook.tasks.text_classification.init_classifier", lambda *_: pytest.fail("the model was loaded"))
    task = TextClassification(["a", "b"], checkpoint=str(tiny_checkpoint), max_length=length)
    with pytest.raises(ConfigError, match=allowed):
        fine_tune(task, text_rows(), config=ONCE)


@pytest.mark.parametrize("labels", [[0], [0, 0, 0], [1, 1]])
def test_one_class_and_one_row_are_measured(labels, task):
    rows = text_rows().select(range(len(labels))).remove_columns("label").add_column("label", labels)
    report = task.metrics(predict(task, task.init_model(), rows), rows)
    assert report.rows == len(labels) and str(report)


# --- entities


PLACES = [["oil"], ["oil", "market"], ["oil", "market", "bank"]]
ENCODINGS = {
    "IOB1": lambda n: ["I"] * n, "IOB2": lambda n: ["B"] + ["I"] * (n - 1), "BIOES": lambda n: ["S"] if n == 1 else ["B", *["I"] * (n - 2), "E"],
    "BMES": lambda n: ["S"] if n == 1 else ["B", *["M"] * (n - 2), "E"], "BILOU": lambda n: ["U"] if n == 1 else ["B", *["I"] * (n - 2), "L"]}


def tagged_rows(scheme="IOB2", strings=True):
    tokens, tags = [], []
    for place in PLACES:
        for who in ("striker", "coach"):
            tokens.append([who, "won", *place, "final"])
            tags.append([f"{ENCODINGS[scheme](1)[0]}-PER", "O", *(f"{p}-LOC" for p in ENCODINGS[scheme](len(place))), "O"])
    rows = Dataset.from_dict({"tokens": tokens, "ner_tags": tags})
    if strings:
        return rows
    names = sorted({t for row in tags for t in row})
    return Dataset.from_dict({"tokens": tokens, "ner_tags": [[names.index(t) for t in row] for row in tags]},
                             features=Features(tokens=List(Value("string")), ner_tags=List(ClassLabel(names=names))))


@pytest.fixture(scope="module")
def tagger(tiny_checkpoint):
    rows = tagged_rows()
    task = TokenClassification.from_rows(rows, checkpoint=str(tiny_checkpoint), max_length=16)
    config = TrainingConfig(learning_rate=1e-2, num_train_epochs=30, per_device_train_batch_size=4)
    return task, fine_tune(task, rows, rows, config).model


@pytest.mark.parametrize("strings", [True, False])
@pytest.mark.parametrize("scheme", ENCODINGS)
def test_tags_of_another_scheme_are_refused_by_name_and_translated_they_are_the_same_entities(scheme, strings, tiny_checkpoint, tagger):
    rows, settings = tagged_rows(scheme, strings), dict(checkpoint=str(tiny_checkpoint), max_length=16)
    if scheme != "IOB2":
        with pytest.raises(SftbookError, match="iob2_rows") as e:
            TokenClassification.from_rows(rows, **settings)
        assert scheme in str(e.value)
    rows = iob2_rows(rows)
    task = TokenClassification.from_rows(rows, **settings)
    assert task.labels == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
    assert [[task.labels[i] for i in row] for row in rows["ner_tags"]] == tagged_rows()["ner_tags"]
    assert task.metrics(predict(*tagger, rows), rows).metrics["f1"].value == 1


def test_tags_may_be_strings_or_ids_in_another_order(tagger):
    task, model = tagger
    for rows in (tagged_rows(), tagged_rows(strings=False)):
        assert task.metrics(predict(task, model, rows), rows).metrics["f1"].value == 1


@pytest.mark.parametrize("change, said", [(lambda t: t[:-1], "tokens and"), (lambda t: [*t, 0], "tokens and"), (lambda t: [-100, *t[1:]], "-100"), (lambda t: [99, *t[1:]], "99"),
                                          (lambda t: [None, *t[1:]], "a tag is missing"), (lambda t: [2, *t[1:]], "begins with I-")])
def test_rows_whose_tags_are_not_those_of_their_tokens_are_refused_together(change, said, tagger):
    task, tokens = tagger[0], tagged_rows()["tokens"]
    tags = [[task.labels.index(t) for t in row] for row in tagged_rows()["ner_tags"]]
    for bad in (2, 4):
        tags[bad] = change(tags[bad])
    with pytest.raises(DataError) as e:
        fine_tune(task, Dataset.from_dict({"tokens": tokens, "ner_tags": tags}), config=ONCE)
    assert said in str(e.value) and "row 2" in str(e.value) and "row 4" in str(e.value)


def test_a_token_without_pieces_does_not_cost_the_other_answers(tagger, tmp_path):
    task, model = tagger
    run = load_run(save_run(tmp_path / "run", task, model, task.metrics(predict(task, model, tagged_rows()), tagged_rows())))
    odd = run.predict([["striker", "\u200b", "won", "oil"], ["striker", "🚀", "won"], [], ["striker", "won", "oil", "final"]])
    assert [len(tags) for tags in odd] == [4, 3, 0, 4] and odd[0][1] == "O" and odd[3] == ["B-PER", "O", "B-LOC", "O"]
    assert run.predict(["striker won oil final"]) == run.predict("striker won oil final") == [odd[3]]
    assert run.predict([]) == []
    for wrong in ([3], [["striker", 3]], [None]):
        with pytest.raises(DataError):
            run.predict(wrong)
    with pytest.raises(DataError, match="without one|no piece"):
        fine_tune(task, Dataset.from_dict({"tokens": [["striker", "\u200b"]], "ner_tags": [["B-PER", "O"]]}), config=ONCE)


@pytest.mark.parametrize("text, words", [("Anna visits Oslo.", ["Anna", "visits", "Oslo", "."]), ("她在Oslo", ["她", "在", "Oslo"]), ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]), ("", [])])
def test_texts_are_split_as_their_language_is_written(text, words):
    assert split_words(text) == words


# --- what a saved run says and takes


def saved(kind, tiny_checkpoint, folder, tagger):
    if kind == "token-classification":
        task, model, rows = *tagger, tagged_rows()
    elif kind == "fill-mask":
        rows, task = Dataset.from_dict({"text": TEXTS}), MaskedLanguageModelling(str(tiny_checkpoint), max_length=16)
        model = task.init_model().eval()
    else:
        rows, task = text_rows(), TextClassification.from_rows(text_rows(), checkpoint=str(tiny_checkpoint), max_length=16)
        model = task.init_model().eval()
    return save_run(folder, task, model, task.metrics(predict(task, model, rows), rows), files={"run.toml": "seed = 1\n"})


@pytest.mark.parametrize("kind", ["text-classification", "token-classification", "fill-mask"])
def test_the_calls_that_a_card_recommends_work(kind, tiny_checkpoint, tagger, tmp_path, capsys):
    from sftbook.cli import main

    folder = saved(kind, tiny_checkpoint, tmp_path / "run", tagger)
    card = (folder / "README.md").read_text(encoding="utf-8").replace("path/of/this/folder", str(folder))
    python = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1].replace("\nmodel(", "\nanswer = model(")
    space = {}
    exec(python, space)
    assert space["answer"] is not None and (folder / "run.toml").read_text() == "seed = 1\n"
    line = re.search(r"`(sftbook [^`]*)`", card)
    assert bool(line) == (kind != "fill-mask")
    words = shlex.split(line[1])[1:] if line else ["predict", str(folder), "a text"]
    with pytest.raises(SystemExit) as done:
        main(words)
    said = capsys.readouterr()
    assert done.value.code == (0 if line else 2) and "Traceback" not in said.err


def damaged(folder, name, change):
    content = json.loads((folder / name).read_text(encoding="utf-8"))
    (folder / name).write_text(json.dumps(change(content)), encoding="utf-8")
    write_manifest(folder)


DAMAGE = [("task.json", lambda t: []), ("task.json", lambda t: {}), ("task.json", lambda t: t | {"task": ["TextClassification"]}), ("task.json", lambda t: t | {"task": "Task"}),
          ("task.json", lambda t: t | {"labels": "ab"}), ("task.json", lambda t: t | {"labels": [1, 2]}), ("task.json", lambda t: t | {"labels": ["a", "b", "c"]}),
          ("task.json", lambda t: t | {"labels": ["a", "a"]}), ("task.json", lambda t: t | {"max_length": "16"}), ("task.json", lambda t: t | {"max_length": True}),
          ("task.json", lambda t: t | {"max_length": 1}), ("task.json", lambda t: {k: v for k, v in t.items() if k != "labels"}), ("task.json", lambda t: t | {"pooling": None}),
          ("config.json", lambda c: {k: v for k, v in c.items() if k != "architectures"}), ("config.json", lambda c: c | {"architectures": []}), ("config.json", lambda c: []),
          *(("config.json", lambda c, name=name: c | {"architectures": [name]}) for name in ("AutoModel", "pipeline", "BertConfig", "Trainer", "set_seed", "no such", 3, None, "GPT2Model")),
          ("config.json", lambda c: c | {"hidden_size": "many"}), ("config.json", lambda c: c | {"num_hidden_layers": -1}), ("config.json", lambda c: c | {"hidden_size": 48}),
          ("tokenizer.json", lambda t: {}), ("report.json", lambda r: []), ("report.json", lambda r: {"metrics": 3})]


@pytest.mark.parametrize("name, change", DAMAGE, ids=range(len(DAMAGE)))
def test_a_folder_of_a_stranger_is_refused_without_a_traceback(name, change, tiny_checkpoint, tmp_path):
    folder = saved("text-classification", tiny_checkpoint, tmp_path / "run", None)
    damaged(folder, name, change)
    with pytest.raises(CheckpointError):
        load_run(folder)
