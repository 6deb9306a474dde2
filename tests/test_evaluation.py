"What evaluation has to withstand: random data against scikit-learn, degenerate inputs, and intervals that hold."

import json
import subprocess
import sys
import warnings

import numpy as np
import pytest
from sklearn import metrics as sk

from sftbook.core import CheckpointError, ConfigError, DataError
from sftbook.evaluation.baselines import linear_baseline, majority_baseline
from sftbook.evaluation.classification import (ClassificationMeter, classification_report,
                                               meter_report)
from sftbook.evaluation.entities import entity_report
from sftbook.evaluation.errors import worst_mistakes
from sftbook.evaluation.metrics import METRICS, load_metric, metric_directions, register_metric
from sftbook.evaluation.reports import Report
from sftbook.evaluation.scores import (confusion_matrix, count_metrics, expected_calibration_error,
                                       fit_temperature)
from sftbook.evaluation.uncertainty import (Interval, bootstrap_interval, mean_interval,
                                            paired_test, rows_to_see, wilson_interval)


def random_case(seed):
    rng = np.random.default_rng(seed)
    k, n = int(rng.integers(2, 9)), int(rng.integers(1, 80))
    probabilities = rng.dirichlet(np.full(k, 0.3), n)
    return rng.integers(0, k, n), probabilities.argmax(-1), probabilities, k


@pytest.mark.parametrize("seed", range(40))
def test_reports_agree_with_scikit_learn(seed):
    y, p, probabilities, k = random_case(seed)
    report = classification_report(y, p, probabilities, [str(i) for i in range(k)], resamples=50)
    value = {name: i.value for name, i in report.metrics.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert value["accuracy"] == pytest.approx(sk.accuracy_score(y, p))
        for name, function in (("precision", sk.precision_score), ("recall", sk.recall_score), ("f1", sk.f1_score)):
            assert value[f"{name}_macro"] == pytest.approx(function(y, p, average="macro", zero_division=0))
            scores = function(y, p, average=None, labels=range(k), zero_division=0)
            assert [c[name].value if c[name] else 0 for c in report.per_class] == pytest.approx(scores)
        assert value["f1_weighted"] == pytest.approx(sk.f1_score(y, p, average="weighted", zero_division=0))
        assert value.get("matthews", 0) == pytest.approx(sk.matthews_corrcoef(y, p))
        assert value["log_loss"] == pytest.approx(sk.log_loss(y, probabilities, labels=range(k)))
        assert value["brier"] == pytest.approx(sk.brier_score_loss(y, probabilities, labels=range(k), scale_by_half=False))
    assert value["ece"] == pytest.approx(expected_calibration_error(y, probabilities))
    assert np.array_equal(report.confusion, sk.confusion_matrix(y, p, labels=range(k)))
    for i in report.metrics.values():  # of one class there is no correlation: a dash
        assert (i.low is None and i.n == 0) or (i.low <= i.high and i.n == len(y))
    assert Report.from_dict(json.loads(json.dumps(report.to_dict(), allow_nan=False))) == report


@pytest.mark.parametrize("seed", range(5))
def test_batches_give_the_same_report_as_all_at_once(seed):
    y, p, probabilities, k = random_case(seed + 100)
    names = [str(i) for i in range(k)]
    meter = ClassificationMeter(names)
    for i in range(0, len(y), 7):
        meter.add_batch(references=y[i : i + 7], probabilities=probabilities[i : i + 7])
    assert meter_report(meter) == classification_report(y, p, probabilities, names)


def test_one_class_and_absent_classes_are_reported_and_no_error():
    report = classification_report([1, 1, 1], [1, 1, 0], label_names=["a", "b", "c"])
    absent = report.per_class[2]
    assert (absent["support"], absent["precision"], absent["recall"], absent["f1"]) == (0, None, None, None)
    assert report.metrics["recall_macro"].value == pytest.approx(1 / 3)
    assert "–" in str(report) and "–" in report.to_markdown()
    alone = classification_report([0, 0], [0, 0], label_names=["a", "b"])
    assert alone.metrics["accuracy"].value == 1 and alone.metrics["matthews"].n == 0  # printed as a dash


@pytest.mark.parametrize("n", [1, 2, 20, 640])
def test_no_error_seen_is_not_no_error_possible(n):
    y = np.arange(n) % 3
    report = classification_report(y, y, label_names=["a", "b", "c"])
    for name, i in report.metrics.items():
        assert i.low is None if not i.n else i.low < 1, name
    assert bootstrap_interval(np.mean, np.ones(n)).low < 1
    assert bootstrap_interval(np.mean, np.zeros(n)).high > 0
    clustered = classification_report(y, y, label_names=["a", "b", "c"], clusters=np.zeros(n))
    assert clustered.metrics["accuracy"].low <= report.metrics["accuracy"].low


BAD = {
    "empty": lambda: classification_report([], []),
    "lengths": lambda: classification_report([0, 1], [0]),
    "probability rows": lambda: classification_report([0, 1], [0, 1], [[0.5, 0.5]]),
    "nan": lambda: classification_report([0, 1], [0, 1], [[0.5, 0.5], [np.nan, 0.5]]),
    "infinite": lambda: classification_report([0, 1], [0, 1], [[0.5, 0.5], [np.inf, 0.5]]),
    "logits": lambda: classification_report([0, 1], [0, 1], [[3.0, 0.5], [0.1, 0.5]]),
    "unlabelled": lambda: classification_report([0, -1], [0, 1], label_names=["a", "b"]),
    "too large an id": lambda: classification_report([0, 2], [0, 1], label_names=["a", "b"]),
    "names": lambda: classification_report(["a"], ["b"]),
    "columns": lambda: classification_report([0, 1], [0, 1], [[0.5, 0.5], [0.5, 0.5]], ["a", "b", "c"]),
    "baseline": lambda: classification_report([0, 1], [0, 1], baselines={"short": [0]}),
    "clusters": lambda: classification_report([0, 1], [0, 1], clusters=[0]),
    "empty bootstrap": lambda: bootstrap_interval(np.mean, []),
    "unequal bootstrap": lambda: bootstrap_interval(lambda a, b: 0.0, [1, 2], [1]),
    "no rows": lambda: wilson_interval(0, 0),
    "one draw": lambda: mean_interval([0.9]),
    "paired": lambda: paired_test([], [], []),
    "majority": lambda: majority_baseline([], 3),
    "linear": lambda: linear_baseline(["a b", "c d"], [1, 1], ["e"]),
    "linear lengths": lambda: linear_baseline(["a b", "c d"], [1], ["e"]),
    "mistakes": lambda: worst_mistakes(["a", "b"], [0], [[0.1, 0.9]], ["x", "y"]),
    "meter": lambda: meter_report(ClassificationMeter(["a", "b"])),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_a_data_error_with_a_place_and_a_remedy(name):
    with pytest.raises(DataError) as error:
        BAD[name]()
    assert "What to do:" in str(error.value)


def test_bad_settings_are_config_errors():
    for bad in (lambda: wilson_interval(1, 2, confidence=95), lambda: load_metric("nope"), lambda: rows_to_see(0.1, 0.05), lambda: ClassificationMeter(["a", "a"])):
        with pytest.raises(ConfigError):
            bad()
    with pytest.raises(CheckpointError):
        Report.from_dict({"rows": 3})


@pytest.mark.parametrize("seed", range(5))
def test_text_fits_eighty_columns(seed):
    rng = np.random.default_rng(seed)
    k = int(rng.integers(2, 40))
    names = [f"{i} " + "a very long name of a class | 类别 " * int(rng.integers(0, 3)) for i in range(k)]
    y, p = rng.integers(0, k, 12_000), rng.integers(0, k, 12_000)
    report = classification_report(y, p, label_names=names, baselines={"a baseline with a name of some length": y}, resamples=50, extra={"settings": {"path": "x" * 200}})
    columns = [sum(2 if "\u4e00" <= c <= "\u9fff" else 1 for c in line) for line in str(report).splitlines()]
    assert max(columns) <= 80
    rows = [line for line in report.to_markdown().splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in rows)


def test_metrics_load_in_a_process_without_network():
    code = """
import os, socket
os.environ["HF_HUB_OFFLINE"] = "1"
def refuse(*args, **kwargs): raise AssertionError("network")
socket.socket.connect = refuse
from sftbook.evaluation.metrics import METRICS, load_metric
rows = dict(label=[0, 1], probabilities=[[0.9, 0.1], [0.2, 0.8]], tags=[["B-PER", "O"], ["O"]])
for name, spec in METRICS.items():
    assert name in load_metric(name).compute(predictions=rows[spec.predictions], references=rows[spec.references])
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_evaluation_is_light():
    code = """
import importlib, pkgutil, sys
import sftbook.evaluation as room
for module in pkgutil.iter_modules(room.__path__, "sftbook.evaluation."):
    importlib.import_module(module.name)
slow = {"torch", "sklearn", "scipy", "evaluate", "datasets", "matplotlib", "transformers"}
assert not slow & set(sys.modules), slow & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_intervals_print_their_unit():
    assert str(Interval(0.97, 0.956, 0.981, 640)) == "97.0 % [95.6, 98.1]"
    assert str(Interval(-0.012, -0.03, 0.005, 640, unit="points")) == "-1.2 points [-3.0, 0.5]"
    assert str(Interval(0.12, 0.1, 0.15, 640, unit="")) == "0.120 [0.100, 0.150]"


def test_torch_tensors_and_data_set_columns_are_taken():
    import torch
    from datasets import Dataset

    rows = Dataset.from_dict({"label": [0, 1, 1]})
    report = classification_report(rows["label"], torch.tensor([0, 1, 0]), torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]]), ["a", "b"])
    assert np.array_equal(report.confusion, confusion_matrix([0, 1, 1], [0, 1, 0], 2))


def population(unequal, accuracy=0.9, classes=20):
    "Chances of (true class, predicted class), and the values of the metrics there."
    share = 1 / np.arange(1, classes + 1) if unequal else np.ones(classes)
    mistaken = np.random.default_rng(99).dirichlet(np.full(classes, 0.3), classes) * (1 - np.eye(classes))
    rates = np.broadcast_to(accuracy, classes)
    chances = mistaken / mistaken.sum(1, keepdims=True) * (1 - rates)[:, None] + np.diag(rates)
    chances *= (share / share.sum())[:, None]
    right, support, predicted = np.diag(chances), chances.sum(1), chances.sum(0)
    of_classes = dict(precision=right / predicted, recall=right / support, f1=2 * right / (support + predicted))
    return chances, count_metrics(right, support, predicted), of_classes


def hold(intervals, truth):
    return [i.low <= t <= i.high for i, t in zip(intervals, truth, strict=True) if i is not None]


CASES = {"equal": (False, 0.9), "unequal": (True, 0.9), "few errors": (True, 0.97), "small ones bad": (True, np.linspace(0.98, 0.6, 20))}


@pytest.mark.parametrize("unequal, accuracy", CASES.values(), ids=CASES)
def test_intervals_of_a_report_hold_the_population_value_with_many_classes(unequal, accuracy):
    chances, overall, of_classes = population(unequal, accuracy)
    k, rng, held = len(chances), np.random.default_rng(1), {}
    for _ in range(900):
        y, p = np.divmod(rng.choice(k * k, 500, p=chances.ravel()), k)
        report = classification_report(y, p, label_names=range(k))
        for name, i in report.metrics.items():
            held.setdefault(name, []).extend(hold([i], [overall[name]]))
        for name, truth in of_classes.items():
            held.setdefault(name, []).extend(hold([c[name] for c in report.per_class], truth))
    covered = {name: np.mean(v) for name, v in held.items()}
    assert {"recall_macro", "f1_macro", "matthews", "f1_weighted", "accuracy"} < set(covered)
    assert all(0.93 < v < 0.98 for v in covered.values()), covered


def probability_case(rng, temperature, rows=500, classes=20):
    logits = 4 * rng.normal(size=(rows, classes))
    chances, answers = (np.exp(t * (logits - logits.max(-1, keepdims=True))) for t in (1, temperature))
    chances, answers = (p / p.sum(-1, keepdims=True) for p in (chances, answers))
    y = np.minimum((chances.cumsum(-1) < rng.random((rows, 1))).sum(-1), classes - 1)
    return y, answers


def test_a_calibrated_model_is_called_calibrated_and_scores_are_held():
    rng, held = np.random.default_rng(3), {"log_loss": [], "brier": [], "ece": []}
    y, p = probability_case(rng, 1, rows=100_000)
    truth = {name: METRICS[name].function(y, p) for name in ("log_loss", "brier")} | {"ece": 0}
    for _ in range(300):
        y, p = probability_case(rng, 1)
        report = classification_report(y, p.argmax(-1), p, resamples=200)
        for name, value in truth.items():
            held[name] += hold([report.metrics[name]], [value])
    assert all(np.mean(v) > 0.925 for v in held.values()), {k: np.mean(v) for k, v in held.items()}
    y, p = probability_case(rng, 2)
    assert classification_report(y, p.argmax(-1), p, resamples=200).metrics["ece"].low > 0.05


def test_six_entities_of_six_are_not_a_thousand_sentences():
    tags = [["B-PER", "O"]] * 6 + [["O"]] * 994
    report = entity_report(tags, tags)
    assert list(report.metrics) == ["f1", "precision", "recall"]
    assert report.metrics["recall"] == wilson_interval(6, 6)
    assert report.metrics["f1"].n == 6 and report.metrics["f1"].low < 0.8
    nothing = entity_report(tags, [["O"] * len(t) for t in tags])
    assert nothing.per_class[0]["precision"] is None and nothing.per_class[0]["f1"].value == 0
    assert "precision                  –" in str(nothing)


@pytest.mark.parametrize("recall", [0.5, 0.7, 0.9])
def test_entity_intervals_hold_at_six_entities(recall):
    rng, held = np.random.default_rng(0), []
    for right in rng.random((300, 6)) < recall:
        report = entity_report([["B-PER"]] * 6, [["B-PER" if r else "O"] for r in right])
        held.append(report.metrics["recall"].low <= recall <= report.metrics["recall"].high)
    assert np.mean(held) > 0.88, np.mean(held)  # seven results are possible: 0 to 6


def test_taggers_are_compared_by_f1_and_old_reports_load():
    rng, truth = np.random.default_rng(0), [["B-PER", "O"]] * 200
    good, bad = ([[str(rng.choice(["B-PER", "O"], p=[q, 1 - q])), "O"] for _ in truth] for q in (0.9, 0.6))
    report = entity_report(truth, good, baselines={"worse": bad, "same": good}, resamples=1000)
    test = report.comparisons["worse"]
    assert test.p_value < 0.01 and test.difference.low > 0 and test.unit == "entities"
    assert test.difference.value == pytest.approx(report.metrics["f1"].value - report.baselines["worse"]["f1"].value)
    assert report.comparisons["same"].p_value == 1 and report.comparisons["same"].difference.low < 0
    assert "p" in str(report).split("Baselines on the same rows")[1].splitlines()[1].split()
    stored = json.loads(json.dumps(report.to_dict()))
    assert Report.from_dict(stored) == report
    del stored["comparisons"]["worse"]["unit"]
    assert Report.from_dict(stored).comparisons["worse"].unit == "rows"


def test_the_randomisation_test_of_equal_taggers_has_its_size():
    rng, found = np.random.default_rng(0), 0
    for _ in range(300):
        a, b = ([["B-PER" if r else "O"] for r in rng.random(60) < 0.7] for _ in range(2))
        found += entity_report([["B-PER"]] * 60, a, baselines={"b": b}, resamples=200).comparisons["b"].p_value < 0.05
    assert found / 300 < 0.085


def test_the_p_value_honours_the_clusters_that_the_interval_honours():
    rng, found, groups = np.random.default_rng(0), 0, np.repeat(np.arange(60), 4)
    for _ in range(400):
        a = np.repeat(rng.random(60) < 0.5, 4).astype(int)
        found += paired_test(np.ones(240, int), a, 1 - a, resamples=2, clusters=groups).p_value < 0.05
    assert 0.01 < found / 400 < 0.08
    y, a, b = rng.integers(0, 2, (3, 150))
    assert paired_test(y, a, b, clusters=np.arange(150)).p_value == pytest.approx(paired_test(y, a, b).p_value)


@pytest.mark.parametrize("clusters", [None, [0]])
def test_one_row_is_measured(clusters):
    report = classification_report([1], [1], [[0.2, 0.8]], ["a", "b"], baselines={"majority": [0]}, clusters=clusters)
    assert report.metrics["log_loss"].high > 10 and report.metrics["ece"].low == 0
    assert report.metrics["accuracy"].low < 0.5 and report.metrics["matthews"].n == 0
    assert report.per_class[0]["recall"] is None and "–" in str(report)
    assert Report.from_dict(json.loads(json.dumps(report.to_dict(), allow_nan=False))) == report


def test_six_hundred_classes_stay_readable():
    rng, k = np.random.default_rng(0), 600
    y = rng.integers(0, k, 3000)
    p = np.where(rng.random(3000) < 0.8, y, rng.integers(0, k, 3000))
    names = [f"{i} a class with a long name | 很长的类别名称 " + "x" * 60 for i in range(k)]
    report = classification_report(y, p, label_names=names, baselines={"majority": p}, resamples=50)
    for text in (str(report), report.to_markdown()):
        columns = [sum(2 if "\u4e00" <= c <= "\u9fff" else 1 for c in line) for line in text.splitlines()]
        assert max(columns) <= 100 and len(columns) < 70
        assert "the 10 largest, then the 10 worst; 580 are not shown" in text
    assert len(report.per_class) == k


def test_the_registry_knows_which_way_is_up():
    assert metric_directions(["accuracy", "log_loss", "brier", "ece", "loss", "perplexity", "recall"]) == {
        "accuracy": True, "log_loss": False, "brier": False, "ece": False, "loss": False, "perplexity": False, "recall": True}
    register_metric("cost", len, greater_is_better=False)
    try:
        assert metric_directions(["cost"]) == {"cost": False}
    finally:
        del METRICS["cost"]


def test_one_temperature_mends_over_confidence():
    rng = np.random.default_rng(0)
    y, p = probability_case(rng, 1, rows=2000)
    assert fit_temperature(3 * np.log(p + 1e-300), y) == pytest.approx(3, rel=0.1)
    with pytest.raises(DataError):
        fit_temperature([[0.0, np.inf]], [0])


def test_grouped_averages_hold_the_truth():
    chances, overall, _ = population(False, 0.8, classes=5)
    rng, held = np.random.default_rng(0), {}
    for _ in range(300):
        y, p = np.divmod(np.repeat(rng.choice(25, 60, p=chances.ravel()), 4), 5)
        report = classification_report(y, p, label_names=range(5), clusters=np.repeat(np.arange(60), 4))
        for name, i in report.metrics.items():
            held.setdefault(name, []).extend(hold([i], [overall[name]]))
    covered = {name: np.mean(v) for name, v in held.items()}
    assert all(v > 0.92 for v in covered.values()), covered
