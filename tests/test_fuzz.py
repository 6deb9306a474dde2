"""Odd files, labels, texts and options: one message or an answer, exit code 0, 1 or 2, and nothing
of the user's changed.

Some dozens of cases in the usual run; for the proof
SFTBOOK_EXAMPLES=10000 pytest tests/test_fuzz.py
"""
import contextlib
import io
import json
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_cli import good_rows, write_csv

import sftbook.cli
import sftbook.tasks.recipes
from sftbook.core import ConfigError, sha256

EXAMPLES = int(os.environ.get("SFTBOOK_EXAMPLES", "60"))
FUZZ = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck),
                derandomize=EXAMPLES < 1000)

words = st.sampled_from([
    "goal", "cup", "bank", "oil", "won", "", " ", "名字", "👍", "a\u200bb", "é", "e\u0301",
    "\ud83d", "-", "nan", "null", "0", "x" * 3000])
texts = st.lists(words, max_size=6).map(" ".join) | st.text(max_size=40)
odd_labels = st.sampled_from([
    "a", "b", "A", "ａ", " b", "0", "0.0", "1", "1.5", "nan", "", "True", "TRUE", "a\u200b", "b;a"])
labels = odd_labels | st.text(max_size=8)
plain = texts | labels | st.none() | st.booleans() | st.integers() | st.floats()
values = plain | st.lists(labels, max_size=3) | st.dictionaries(labels, labels, max_size=2)
names = st.sampled_from(["text", "label", "Text", "id", "prediction", ""])


some_rows = st.lists(st.tuples(texts, labels), max_size=12)
fine_rows = st.sampled_from([[], good_rows(6), good_rows(20)])
odd_records = st.lists(st.dictionaries(names, values, max_size=3), max_size=3)
endings = st.sampled_from([
    "d.csv", "d.tsv", "d.jsonl", "d.json", "d.parquet", "d.csv.gz", "d.txt", "d"])
encodings = st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1"])


def as_json(draw, rows, kind):
    records = [{"text": text, "label": label} for text, label in rows] + draw(odd_records)
    return json.dumps(records) if kind == "json" else "\n".join(map(json.dumps, records))


def as_table(draw, rows, kind):
    delimiter = draw(st.sampled_from([",", ";", "\t"])) if kind == "csv" else "\t"
    quote = draw(st.sampled_from(['"', ""]))
    lines = []
    for row in [("text", "label"), *rows]:
        lines.append(delimiter.join(f"{quote}{field}{quote}" for field in row))
    return "\n".join(lines)


@st.composite
def files(draw):
    "Name and bytes of a file that somebody might have."
    rows = draw(some_rows) + draw(fine_rows)
    kind = draw(st.sampled_from(["csv", "tsv", "jsonl", "json", "broken"]))
    if kind == "broken":
        return draw(endings), draw(st.binary(max_size=200))
    write = as_json if kind in ("jsonl", "json") else as_table
    text, encoding = write(draw, rows, kind), draw(encodings)
    data = text.encode(encoding, "replace" if draw(st.booleans()) else "backslashreplace")
    if draw(st.booleans()):
        cut = draw(st.integers(0, len(data)))
        data = data[:cut] + draw(st.binary(max_size=4)) + data[cut:]
    return f"d.{kind}", data


numbers = st.sampled_from(["0", "-1", "1", "2", "0.5", "1e9", "nan", "inf", "99999999999", "x", ""])
numeric = st.sampled_from([
    "--test-size", "--validation-size", "--seed", "--epochs", "--batch-size", "--learning-rate",
    "--max-length", "--max-characters", "--min-rows", "--patience"])
options = st.lists(st.tuples(numeric, numbers), max_size=3)
others_of_train = st.sampled_from([
    ("--merge-labels",), ("--resume",), ("--overwrite",), ("--bf16",), ("--class-weights",),
    ("--text", "label"), ("--label", "id"), ("--metric", "f1"), ("--metric", "log_loss"),
    ("--device", "cpu"), ("--checkpoint", "minlm"), ("--checkpoint", "."), ("--checkpoints", "c"),
    ("--delimiter", ";"), ("--config", "d.csv"), ("--output", "d.csv"), ("--unlabelled", "d.csv"),
    ("--long-texts", "tail"), ("--long-texts", "windows"), ("--task", "multi-label"),
    ("--task", "entities"), ("--task", "x")])
more = st.lists(others_of_train, max_size=2)


def run_in(folder, words):
    "Exit code and error of a command whose working directory is `folder`."
    err = io.StringIO()
    with (contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()),
          contextlib.redirect_stderr(err), pytest.raises(SystemExit) as end):
        sftbook.cli.main([str(w) for w in words])
    return end.value.code, err.getvalue()


def check(folder, file, before, code, err):
    assert code in (0, 1, 2), code
    assert "Traceback" not in err and (code == 0) == ("sftbook:" not in err), err
    assert sha256(folder / file) == before


@FUZZ
@given(file=files(), chosen=options, others=more)
def test_train_on_anything(file, chosen, others, tiny_checkpoint):
    def enough(*_):
        raise ConfigError("this is where training would begin")

    whole, sftbook.tasks.recipes.train_model = sftbook.tasks.recipes.train_model, enough
    try:
        with tempfile.TemporaryDirectory() as home:
            folder = Path(home)
            (folder / file[0]).write_bytes(file[1])
            before = sha256(folder / file[0])
            words = ["train", "--data", file[0], "--checkpoint", tiny_checkpoint,
                     "--max-length", "16"]
            for option in [*chosen, *others]:
                words += option
            code, err = run_in(folder, words)
            check(folder, file[0], before, code, err)
            assert sorted(os.listdir(folder)) == [file[0]]
    finally:
        sftbook.tasks.recipes.train_model = whole


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tiny_checkpoint):
    folder = tmp_path_factory.mktemp("fuzz")
    write_csv(folder / "data.csv", good_rows())
    words = ["train", "--data", "data.csv", "--checkpoint", tiny_checkpoint, "--output", "run",
             "--epochs", "1", "--max-length", "16"]
    code, err = run_in(folder, words)
    assert code == 0, err
    return folder / "run"


@FUZZ
@given(file=files(), command=st.sampled_from(["predict", "evaluate", "answers"]))
def test_predict_and_evaluate_anything(file, command, saved):
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        (folder / file[0]).write_bytes(file[1])
        before = sha256(folder / file[0])
        words = [command, saved]
        if command == "answers":
            words = ["predict", saved, "--output", "out.csv"]
        code, err = run_in(folder, [*words, "--data", file[0]])
        check(folder, file[0], before, code, err)
        assert (folder / "out.csv").exists() == (command == "answers" and code == 0)
