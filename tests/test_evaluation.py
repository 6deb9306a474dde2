"What evaluation has to withstand: random data against scikit-learn, degenerate inputs, and intervals that hold."

import json
import subprocess
import sys
import warnings

import numpy as np
import pytest
from sklearn import metrics as sk

from sftbook.core import CheckpointError, ConfigError, DataError
from sftbook.evaluation import (
    ClassificationMeter,
    Interval,
    Report,
    bootstrap_interval,
    classification_report,
    confusion_matrix,
    expected_calibration_error,
    linear_baseline,
    load_metric,
    majority_baseline,
    mean_interval,
    meter_report,
    paired_test,
    rows_to_see,
    wilson_interval,
    worst_mistakes,
)


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
    for i in report.metrics.values():
        assert i.low <= i.high and i.n == len(y)
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
    assert alone.metrics["accuracy"].value == 1 and "matthews" not in alone.metrics


@pytest.mark.parametrize("n", [1, 2, 20, 640])
def test_no_error_seen_is_not_no_error_possible(n):
    y = np.arange(n) % 3
    report = classification_report(y, y, label_names=["a", "b", "c"])
    for name, i in report.metrics.items():
        assert i.low < 1, name
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
from sftbook.evaluation import METRICS, load_metric
rows = dict(label=[0, 1], probabilities=[[0.9, 0.1], [0.2, 0.8]], tags=[["B-PER", "O"], ["O"]])
for name, spec in METRICS.items():
    assert name in load_metric(name).compute(predictions=rows[spec.predictions], references=rows[spec.references])
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_evaluation_is_light():
    code = "import sys, sftbook.evaluation; heavy = {'torch', 'sklearn', 'scipy', 'evaluate', 'datasets', 'matplotlib', 'transformers'} & set(sys.modules); assert not heavy, heavy"
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
