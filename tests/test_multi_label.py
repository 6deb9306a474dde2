"What a task with several labels a text must not get wrong. Each test is named after what broke."
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers as tf
from datasets import Dataset
from sklearn.metrics import f1_score, precision_score, recall_score

from sftbook.core import CheckpointError, ConfigError, DataError
from sftbook.folders import write_manifest
from sftbook.evaluation.baselines import linear_baseline
from sftbook.evaluation.reports import Report
from sftbook.model import output_layer
from sftbook.evaluation.multi_label import (MultiLabelPredictions, constant_answers,
                                            fit_thresholds, multi_label_baseline, multilabel_report)
from sftbook.preprocessing.multi_label import combination_rows, label_matrix, load_multi_label
from sftbook.tasks.multi_label import MultiLabelClassification
from sftbook.preprocessing.copies import duplicate_clusters
from sftbook.preprocessing.rows import audit, deduplicate, split_rows
from sftbook.tasks.protocol import fine_tune, predict
from sftbook.tasks.saved_runs import load_run, save_run
from sftbook.trainer import TrainingConfig

TEXTS = ["the striker scored a goal", "the bank fell", "the bank won the cup", "the team", "oil profit rose", "the coach won"]
LABELS = [["sport"], ["money"], ["money", "sport"], [], ["money"], ["sport"]]


def jsonl(folder, lists, texts=None):
    path = folder / "rows.jsonl"
    texts = texts or [f"text {i}" for i in range(len(lists))]
    path.write_text("\n".join(json.dumps({"text": t, "labels": x}) for t, x in zip(texts, lists)), encoding="utf-8")
    return path


def csv(folder, *cells, header="text,labels"):
    path = folder / "rows.csv"
    path.write_text("\n".join([header, *(f"text {i},{c}" for i, c in enumerate(cells))]), encoding="utf-8")
    return path


def names_of(rows):
    names = rows.features["labels"].feature.names
    return [[names[i] for i in ids] for ids in rows["labels"]]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return load_multi_label(jsonl(tmp_path_factory.mktemp("rows"), LABELS, TEXTS))


@pytest.fixture(scope="module")
def task(tiny_checkpoint, rows):
    return MultiLabelClassification.from_rows(rows, checkpoint=str(tiny_checkpoint), max_length=16)


@pytest.fixture(scope="module")
def tuned(task, rows):
    return fine_tune(task, rows, config=TrainingConfig(num_train_epochs=80, learning_rate=5e-3))


# --- files


@pytest.mark.parametrize("cells, found", [
    (["a|b", "a", "b"], "'|'"), (["a;b", "a", "b"], "';'"), (['"a,b"', "a", "b"], "','"),
    (['"[""a"", ""b""]"', "a", "b"], None), (["\"['a', 'b']\"", '"[""a""]"', "b"], None), (["a | b", "a", "b"], "'|'")])
def test_every_way_to_write_several_labels_in_a_cell_is_read(cells, found, tmp_path):
    rows = load_multi_label(csv(tmp_path, *cells))
    assert names_of(rows) == [["a", "b"], ["a"], ["b"]]
    assert (f"separated by {found}" in rows.info.description) == (found is not None)


def test_a_separator_that_is_named_overrules_the_one_that_is_found(tmp_path):
    path = csv(tmp_path, "a|x;b", "b", "")
    assert names_of(load_multi_label(path, separator=";")) == [["a|x", "b"], ["b"], []]
    with pytest.raises(ConfigError, match="separator"):
        load_multi_label(path, separator="")


def test_parquet_lists_and_empty_ones_are_read_and_counted(tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": ["x", "y", "z"], "labels": [["a", "b"], None, []]}), path)
    rows = load_multi_label(path)
    assert names_of(rows) == [["a", "b"], [], []] and "2 of 3 rows have no label" in rows.info.description
    assert rows["row"] == [1, 2, 3] and set(rows["file"]) == {"rows.parquet"}


def test_a_comma_inside_a_json_name_does_not_cut_it(tmp_path):
    rows = load_multi_label(jsonl(tmp_path, [["food, drinks", "rent"], ["rent"], []]))
    assert names_of(rows) == [["food, drinks", "rent"], ["rent"], []]


@pytest.mark.parametrize("labels, said", [
    ({"name": "a"}, "an object"), (["a", float("nan")], "no value"), (["a", None], "empty"), (["a", ""], "empty"),
    ([["a"]], "list of 1"), ([{"a": 1}], "an object"), (float("nan"), "no value"), ("[a, b]", "cannot be read as a list")])
def test_values_that_are_no_names_are_refused_with_their_line(labels, said, tmp_path):
    with pytest.raises(DataError) as e:
        load_multi_label(jsonl(tmp_path, [["a", "b"], ["b"], labels]))
    assert said in str(e.value) and "line 3" in str(e.value)


def test_all_bad_rows_are_listed_at_once_in_their_order(tmp_path):
    with pytest.raises(DataError) as e:
        load_multi_label(jsonl(tmp_path, [["a"], {}, ["b"], [None]], ["x", "y", " ", "z"]))
    lines = [line for line in str(e.value).splitlines() if "row at line" in line]
    assert [int(line.split("line ")[1].split(",")[0]) for line in lines] == [2, 3, 4]


def test_columns_of_zero_and_one_are_one_label_each(tmp_path):
    path = csv(tmp_path, "1,0", "TRUE,true", "false,1.0", "0,0", header="text,toxic,threat")
    rows = load_multi_label(path, label="toxic, threat")
    assert rows.features["labels"].feature.names == ["toxic", "threat"]
    assert names_of(rows) == [["toxic"], ["toxic", "threat"], ["threat"], []]


@pytest.mark.parametrize("cell", ["2", "yes", "", "0.5"])
def test_a_flag_that_is_neither_yes_nor_no_is_refused(cell, tmp_path):
    with pytest.raises(DataError, match="0, 1, true or false") as e:
        load_multi_label(csv(tmp_path, "1,0", f"0,{cell}", header="text,toxic,threat"), label="toxic,threat")
    assert "line 3" in str(e.value) and "threat" in str(e.value)


def test_a_flag_column_that_is_missing_is_named(tmp_path):
    with pytest.raises(DataError, match="'treat'.*'threat'"):
        load_multi_label(csv(tmp_path, "1,0", header="text,toxic,threat"), label="toxic,treat")


def test_a_column_with_a_comma_in_its_name_is_one_column(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"text": "x", "a,b": ["c", "d"]}\n{"text": "y", "a,b": []}')
    assert names_of(load_multi_label(path, label="a,b")) == [["c", "d"], []]


def test_a_label_twice_in_a_row_counts_once(tmp_path):
    rows = load_multi_label(jsonl(tmp_path, [["b", "a", "b"], ["a"], []]))
    assert names_of(rows) == [["a", "b"], ["a"], []] and "1 labels that stood twice" in rows.info.description


@pytest.mark.parametrize("twin", ["Spam", "spam ", "ｓｐａｍ", "spam\u200b"])
def test_labels_that_look_alike_are_refused(twin, tmp_path):
    with pytest.raises(DataError, match="differ only by"):
        load_multi_label(jsonl(tmp_path, [["spam", "x"], [twin], []]))


def test_unknown_labels_of_a_saved_run_are_refused_and_order_is_the_runs(tmp_path):
    path = jsonl(tmp_path, [["b"], ["A"], ["b"]])
    rows = load_multi_label(path, labels=["b", "a", "c"])
    assert rows["labels"] == [[0], [1], [0]] and "'A' was read as 'a'" in rows.info.description
    with pytest.raises(DataError, match="does not know: 'A'|not know: 'b'"):
        load_multi_label(path, labels=["a", "c"])


@pytest.mark.parametrize("lists, said", [
    ([["a"], []], "only one label"), ([["a"], ["a", "b"]], "every row has the label 'a'"), ([[], []], "no row has a label")])
def test_labels_that_teach_nothing_are_refused(lists, said, tmp_path):
    with pytest.raises(DataError, match=said):
        load_multi_label(jsonl(tmp_path, lists))


def test_one_label_a_row_is_remarked_upon(tmp_path):
    assert "the other task" in load_multi_label(jsonl(tmp_path, [["a"], ["b"], []])).info.description


def test_a_corpus_of_the_book_is_sent_to_the_other_loader():
    with pytest.raises(DataError, match="one label a text"):
        load_multi_label("bbc-news")


# --- splitting and auditing


def many_rows(folder, n=600, seed=0, labels=12):
    rng = np.random.default_rng(seed)
    frequencies = np.geomspace(0.4, 0.03, labels)
    lists = [[f"l{k}" for k in np.flatnonzero(rng.random(labels) < frequencies)] for _ in range(n)]
    return load_multi_label(jsonl(folder, lists, [f"row {i} {rng.integers(1e9)}" for i in range(n)]))


@pytest.mark.parametrize("seed", range(3))
def test_every_label_has_nearly_the_same_share_in_every_part(seed, tmp_path):
    rows = many_rows(tmp_path, seed=seed)
    parts = split_rows(combination_rows(rows), np.arange(len(rows)))
    names = rows.features["labels"].feature.names
    train, test = (label_matrix(parts[p], names).mean(0) for p in ("train", "test"))
    assert sum(map(len, parts.values())) == len(rows) and label_matrix(parts["test"], names).any(0).all()
    spread = np.sqrt(train * (1 - train) * (1 / 360 + 1 / 180))  # of a split by chance
    assert np.mean(np.abs(train - test) / spread) < 0.6  # by chance: 0.8
    assert np.abs(train - test).max() < 0.06


@pytest.mark.parametrize("n", range(20, 80, 7))
def test_small_data_with_rare_combinations_can_still_be_split(n, tmp_path):
    rows = combination_rows(many_rows(tmp_path, n=n, labels=5))
    counts = np.bincount(rows["label"])
    assert counts.min() >= 10 or len(counts) == 1
    assert min(map(len, split_rows(rows, np.arange(n)).values())) > 0


def test_preprocessing_works_on_combinations_unchanged(tmp_path):
    lists = [["a"], ["a", "b"], ["b"], ["b"], []]
    rows = load_multi_label(jsonl(tmp_path, lists, ["same text", "Same  text", "other words here", "other words here", "third one"]))
    exact = combination_rows(rows, min_rows=1)
    assert set(audit(exact).classes if hasattr(audit(exact), "classes") else exact.features["label"].names) == {"a", "a + b", "b", "(none)"}
    kept, why = deduplicate(exact)
    assert why == {"duplicates": 1, "label_conflicts": 2} and kept["labels"] == [[1], []]
    assert len(duplicate_clusters(list(exact["text"]))) == 5


def test_a_second_call_replaces_the_column(rows):
    twice = combination_rows(combination_rows(rows, 1), 1)
    assert twice.features["label"].names == ["(none)", "money", "money + sport", "sport"]


# --- thresholds


def answers(p, n):
    "What `n` thresholds from 0 to 1 answer; where many answer the same, once."
    given = (p >= c for c in np.linspace(0, 1, n))
    return {one.tobytes(): one for one in given}.values()


@pytest.mark.parametrize("seed", range(20))
def test_no_threshold_has_a_better_f1_than_the_one_that_is_found(seed):
    rng = np.random.default_rng(seed)
    p = rng.integers(0, 21, (60, 2)) / 20  # many equal ones, and 0 and 1
    truth = rng.random((60, 2)) < 0.2 + 0.6 * p
    for k, t in enumerate(fit_thresholds(truth, p)):
        best = max(f1_score(truth[:, k], given) for given in answers(p[:, k], 401))
        assert f1_score(truth[:, k], p[:, k] >= t) == pytest.approx(best)


def test_of_equal_thresholds_the_one_nearest_to_a_half_is_taken():
    truth = np.array([[1, 0]] * 10 + [[0, 1]] * 10) == 1
    p = np.where(truth, 0.9, 0.2)
    assert fit_thresholds(truth, p) == [pytest.approx(0.55)] * 2
    alike = np.full((20, 2), 0.3)  # all rows or none: all is better
    assert fit_thresholds(truth, alike) == [pytest.approx(0.15)] * 2


def test_rare_labels_share_the_threshold_of_best_f1_micro():
    rng = np.random.default_rng(0)
    truth = rng.random((200, 3)) < [0.3, 0.02, 0.01]
    p = np.clip(0.4 * truth + 0.4 * rng.random((200, 3)), 0, 1)
    own, second, third = fit_thresholds(truth, p)
    assert second == third
    best = max(f1_score(truth, given, average="micro") for given in answers(p, 2001))
    assert f1_score(truth, p >= second, average="micro") == pytest.approx(best)


def test_without_any_positive_row_the_threshold_is_a_half():
    assert fit_thresholds(np.zeros((5, 2), bool), np.full((5, 2), 0.3)) == [0.5, 0.5]


# --- the task


def test_the_loss_is_the_one_of_transformers(task, rows):
    model = task.init_model().eval()
    assert model.config.problem_type == "multi_label_classification"
    batch = task.collate(task.encode(rows))
    total, targets = task.loss(model, batch)
    assert targets == len(rows) * 2 and batch["labels"].dtype == torch.float32
    assert total.item() / targets == pytest.approx(model(**batch).loss.item(), rel=1e-5)


def test_labels_of_rows_are_matched_by_name_and_not_by_number(task, rows, tmp_path):
    other = load_multi_label(jsonl(tmp_path, LABELS, TEXTS), labels=["sport", "money"])
    assert other["labels"] != rows["labels"]
    assert [f["labels"] for f in task.encode(other)] == [f["labels"] for f in task.encode(rows)]
    named = Dataset.from_dict({"text": TEXTS, "labels": LABELS})
    assert [f["labels"] for f in task.encode(named)] == [f["labels"] for f in task.encode(rows)]


def test_an_unknown_label_is_named_with_its_row(task):
    with pytest.raises(DataError, match="no label 'weather'") as e:
        task.encode(Dataset.from_dict({"text": ["x"], "labels": [["weather"]]}))
    assert "row 0" in str(e.value)


def test_labels_beyond_the_second_are_not_taken_for_absent(tiny_checkpoint, tmp_path):
    lists = [["a", "c"], ["b"], ["d"], ["c", "d"], []]
    rows = load_multi_label(jsonl(tmp_path, lists))
    task = MultiLabelClassification.from_rows(rows, checkpoint=str(tiny_checkpoint), max_length=16)
    done = fine_tune(task, rows, config=TrainingConfig(num_train_epochs=1))
    assert not [m for m in done.result.messages if "no training row" in m]


def test_a_label_without_a_training_row_is_hardly_ever_given(tiny_checkpoint, rows):
    task = MultiLabelClassification(["money", "sport", "weather"], checkpoint=str(tiny_checkpoint), max_length=16)
    done = fine_tune(task, rows, config=TrainingConfig(num_train_epochs=1))
    assert any("weather" in m for m in done.result.messages)
    assert predict(task, done.model, rows).probabilities[:, 2].max() < 0.25
    assert output_layer(done.model).out_features == 3


def test_training_learns_rows_with_none_one_and_two_labels(task, tuned, rows):
    assert predict(task, tuned.model, rows).names == [sorted(x) for x in LABELS]


def test_directions_name_what_the_reports_hold(task, tuned, rows):
    report = task.metrics(predict(task, tuned.model, rows), rows)
    assert set(task.directions) == set(report.metrics)


@pytest.mark.parametrize("name", ["f1_micro", "hamming_loss", "log_loss", "precision_micro"])
def test_every_metric_can_choose_the_best_epoch(name, task, rows):
    config = TrainingConfig(num_train_epochs=2, metric_for_best_model=name)
    assert fine_tune(task, rows, rows, config).result.state.best_step


def test_a_saved_run_answers_as_before_with_its_thresholds(task, tuned, rows, tmp_path):
    predicted = predict(task, tuned.model, rows)
    limits = fit_thresholds(label_matrix(rows, task.labels), predicted.probabilities)
    own = MultiLabelClassification(task.labels, task.checkpoint, 16, thresholds=limits)
    report = own.metrics(predict(own, tuned.model, rows), rows)
    folder = save_run(tmp_path / "run", own, tuned.model, report)
    run = load_run(folder)
    assert run.task.thresholds == limits and run.report == report
    again = run.predict(TEXTS)
    assert isinstance(again, MultiLabelPredictions) and again.names == predict(own, tuned.model, rows).names
    np.testing.assert_allclose(again.probabilities, predicted.probabilities, atol=1e-6)
    assert run.predict([]).probabilities.shape == (0, 2)
    assert run.predict("the cup").labels.shape == (1, 2)


def test_the_plain_pipeline_gives_the_same_probabilities(task, tuned, rows, tmp_path):
    folder = save_run(tmp_path / "run", task, tuned.model, task.metrics(predict(task, tuned.model, rows), rows))
    ask = tf.pipeline("text-classification", str(folder), device="cpu")
    for text, row in zip(TEXTS, predict(task, tuned.model, rows).probabilities):
        theirs = {r["label"]: r["score"] for r in ask(text, truncation=True, top_k=None)}
        np.testing.assert_allclose([theirs[n] for n in task.labels], row, atol=1e-5)
    assert "top_k=None" in (folder / "README.md").read_text()


@pytest.mark.parametrize("thresholds", [[0.5], [0.5, 1.5], [0.5, "x"], 0.5])
def test_thresholds_that_cannot_be_are_refused_when_a_run_is_loaded(thresholds, task, tuned, rows, tmp_path):
    folder = save_run(tmp_path / "run", task, tuned.model, task.metrics(predict(task, tuned.model, rows), rows))
    saved = json.loads((folder / "task.json").read_text())
    (folder / "task.json").write_text(json.dumps(saved | {"thresholds": thresholds}))
    write_manifest(folder)
    with pytest.raises(CheckpointError, match="threshold"):
        load_run(folder)


# --- reports


def sample(n=200, labels=5, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.random((n, labels)) < np.geomspace(0.4, 0.05, labels)
    return truth, np.clip(0.5 * truth + 0.6 * rng.random((n, labels)), 0, 1)


def report_of(truth, p, **how):
    return multilabel_report(truth, p, None, [f"l{k}" for k in range(truth.shape[1])], **how)


def test_numbers_are_those_of_scikit_learn():
    truth, p = sample()
    report, given = report_of(truth, p), p >= 0.5
    for name, function in (("f1", f1_score), ("precision", precision_score), ("recall", recall_score)):
        assert report.metrics[f"{name}_micro"].value == pytest.approx(function(truth, given, average="micro"))
        per_label = function(truth, given, average=None)
        assert [c[name].value for c in report.per_class] == pytest.approx(per_label.tolist())
    assert report.metrics["f1_macro"].value == pytest.approx(f1_score(truth, given, average="macro"))
    cross = -(truth * np.log(p) + ~truth * np.log(np.maximum(1 - p, np.finfo(float).eps))).mean()
    assert report.metrics["log_loss"].value == pytest.approx(cross)


def test_what_does_not_exist_is_a_dash_and_not_a_number():
    truth, p = sample()
    truth[:, 1] = False
    p[:, 2] = 0.
    report = report_of(truth, p)
    assert report.per_class[1]["f1"] is None and report.per_class[1]["recall"] is None
    assert report.per_class[2]["precision"] is None and report.per_class[2]["recall"].value == 0
    assert report.metrics["f1_macro"].value == pytest.approx(np.mean([c["f1"].value for c in report.per_class if c["f1"]]))
    lines = {line.split()[0]: line.split() for line in str(report).splitlines() if line}
    assert lines["l1"][-2:] == ["–", "–"] and lines["l2"][2] == "–"
    nothing = report_of(np.zeros((5, 2), bool), np.zeros((5, 2)))
    assert all(nothing.metrics[m].n == 0 for m in ("f1_micro", "f1_macro", "precision_micro", "recall_micro"))
    assert "f1_micro" in str(nothing) and "0.0 % [0.0, 100.0]" not in str(nothing)


def test_a_report_survives_json_and_keeps_what_is_compared_together():
    truth, p = sample()
    report = report_of(truth, p, baselines=constant_answers(truth, len(truth)))
    again = Report.from_dict(json.loads(json.dumps(report.to_dict(), sort_keys=True)))
    assert again == report
    for text in (str(report), str(again)):
        assert "f1_micro" in next(line for line in text.splitlines() if line.startswith("baseline"))


def test_a_report_never_divides_by_zero_at_the_edges():
    with np.errstate(all="raise"):
        for n, labels in ((1, 2), (2, 2), (50, 3)):
            for truth in (np.zeros((n, labels), bool), np.ones((n, labels), bool), np.arange(n * labels).reshape(n, labels) % 2 == 0):
                for p in (truth * 1., 1. - truth, np.full((n, labels), 0.5)):
                    metrics = report_of(truth, p, baselines={"x": ~truth}).metrics
                    assert metrics["f1_macro"].low is None or not metrics["f1_macro"].n  # no interval is known that holds
                    held = [i for i in metrics.values() if i.low is not None]
                    assert all(np.isfinite([i.low, i.value, i.high]).all() and i.low <= i.value <= i.high for i in held)


def test_the_interval_is_wider_where_labels_of_a_row_are_wrong_together():
    rng = np.random.default_rng(0)
    truth = np.repeat(rng.random((300, 1)) < 0.5, 8, 1)
    apart, together = (truth ^ (rng.random((300, k)) < 0.2) for k in (8, 1))
    found = [report_of(truth, given * 1.).metrics["f1_micro"] for given in (apart, together)]
    narrow, wide = (i.high - i.low for i in found)
    assert wide > 1.7 * narrow


@pytest.mark.parametrize("labels", [3, 100])
def test_the_table_of_labels_fits_a_terminal(labels):
    truth, p = sample(400, labels)
    names = [f"a rather long name of the label number {k}" for k in range(labels)]
    text = str(multilabel_report(truth, p, None, names))
    assert max(map(len, text.splitlines())) <= 100 and len(text.splitlines()) < 50


def test_the_paired_test_finds_no_difference_between_equals_and_one_between_good_and_bad():
    truth, p = sample()
    report = report_of(truth, p, baselines={"same": p >= 0.5, "none": truth & False})
    same, none = report.comparisons["same"], report.comparisons["none"]
    assert same.p_value == 1 and same.difference.low < 0 == same.difference.value < same.difference.high
    assert none.p_value < 0.001 and none.difference.low > 0


def test_the_paired_test_is_right_about_chance():
    rng, small = np.random.default_rng(0), 0
    for _ in range(200):
        truth = rng.random((80, 4)) < 0.3
        a, b = (truth ^ (rng.random((80, 4)) < 0.15) for _ in range(2))
        small += report_of(truth, a * 1., baselines={"b": b}, resamples=200).comparisons["b"].p_value <= 0.05
    assert 2 <= small <= 20


@pytest.mark.parametrize("change, said", [
    (dict(truth=np.zeros((3, 2), bool)), "differ"), (dict(truth=np.zeros((0, 5), bool)), "yes and no"),
    (dict(p=np.full((200, 5), 1.2)), "numbers in"), (dict(p=np.full((200, 5), np.nan)), "numbers in"), (dict(truth=np.full((200, 5), 2)), "yes and no")])
def test_input_that_cannot_be_is_refused(change, said):
    truth, p = sample()
    with pytest.raises(DataError, match=said):
        multilabel_report(change.get("truth", truth), change.get("p", p), None, list("abcde"))


def test_the_number_of_names_must_be_that_of_the_columns():
    truth, p = sample()
    with pytest.raises(DataError, match="differ"):
        multilabel_report(truth, p, None, list("abc"))
    with pytest.raises(ConfigError, match="5 thresholds"):
        multilabel_report(truth, p, [0.5], list("abcde"))


# --- baselines


def test_a_label_that_all_or_no_training_rows_have_does_not_stop_the_baseline():
    truth = np.array([[1, 0, 1], [1, 0, 0], [1, 0, 1], [1, 0, 0]]) == 1
    p = multi_label_baseline(["good red", "bad blue", "good green", "bad grey"], truth, ["good blue", "bad red", "new"])
    assert (p[:, 0] == 1).all() and (p[:, 1] == 0).all() and p[0, 2] > 0.5 > p[1, 2]


def test_the_baseline_reads_texts_without_spaces():
    truth = np.array([[1, 0], [0, 1], [1, 0], [0, 1]]) == 1
    p = multi_label_baseline(["天气很好", "股票下跌", "天气不好", "股票上涨"], truth, ["天气", "股票"])
    assert p.argmax(1).tolist() == [0, 1]
    assert linear_baseline(["天气很好", "股票下跌", "天气不好", "股票上涨"], [0, 1, 0, 1], ["天气", "股票"]).tolist() == [0, 1]


def test_the_baseline_refuses_texts_without_words_and_rows_without_labels():
    truth = np.array([[1, 0], [0, 1]]) == 1
    with pytest.raises(DataError, match="no words"):
        multi_label_baseline(["", ""], truth, ["x"])
    with pytest.raises(DataError, match="3 texts and 2 rows"):
        multi_label_baseline(["a", "b", "c"], truth, ["x"])
