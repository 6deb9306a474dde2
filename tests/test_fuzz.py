"""Odd files, labels, texts and options: one message or an answer, exit code 0, 1 or 2, and nothing of the user's changed.

Some dozens of cases in the usual run; SFTBOOK_EXAMPLES=10000 pytest tests/test_fuzz.py for the proof.
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
FUZZ = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=EXAMPLES < 1000)

words = st.sampled_from(["goal", "cup", "bank", "oil", "won", "", " ", "名字", "👍", "a\u200bb", "é", "e\u0301", "\ud83d", "-", "nan", "null", "0", "x" * 3000])
texts = st.lists(words, max_size=6).map(" ".join) | st.text(max_size=40)
labels = st.sampled_from(["a", "b", "A", "ａ", " b", "0", "0.0", "1", "1.5", "nan", "", "True", "TRUE", "a\u200b", "b;a"]) | st.text(max_size=8)
values = texts | labels | st.none() | st.booleans() | st.integers() | st.floats() | st.lists(labels, max_size=3) | st.dictionaries(labels, labels, max_size=2)
names = st.sampled_from(["text", "label", "Text", "id", "prediction", ""])


@st.composite
def files(draw):
    "Name and bytes of a file that somebody might have."
    rows = draw(st.lists(st.tuples(texts, labels), max_size=12)) + draw(st.sampled_from([[], good_rows(6), good_rows(20)]))
    kind = draw(st.sampled_from(["csv", "tsv", "jsonl", "json", "broken"]))
    if kind == "broken":
        return draw(st.sampled_from(["d.csv", "d.tsv", "d.jsonl", "d.json", "d.parquet", "d.csv.gz", "d.txt", "d"])), draw(st.binary(max_size=200))
    if kind in ("jsonl", "json"):
        records = [{"text": t, "label": n} for t, n in rows] + draw(st.lists(st.dictionaries(names, values, max_size=3), max_size=3))
        text = json.dumps(records) if kind == "json" else "\n".join(map(json.dumps, records))
    else:
        delimiter = draw(st.sampled_from([",", ";", "\t"])) if kind == "csv" else "\t"
        quote = draw(st.sampled_from(['"', ""]))
        text = "\n".join(delimiter.join(f"{quote}{field}{quote}" for field in row) for row in [("text", "label"), *rows])
    data = text.encode(draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1"])), "replace" if draw(st.booleans()) else "backslashreplace")
    if draw(st.booleans()):
        cut = draw(st.integers(0, len(data)))
        data = data[:cut] + draw(st.binary(max_size=4)) + data[cut:]
    return f"d.{kind}", data


numbers = st.sampled_from(["0", "-1", "1", "2", "0.5", "1e9", "nan", "inf", "99999999999", "x", ""])
options = st.lists(st.tuples(st.sampled_from("--test-size --validation-size --seed --epochs --batch-size --learning-rate --max-length --max-characters --min-rows --patience".split()), numbers), max_size=3)
more = st.lists(st.sampled_from([("--merge-labels",), ("--resume",), ("--overwrite",), ("--text", "label"), ("--label", "id"), ("--metric", "f1"), ("--metric", "log_loss"), ("--device", "cpu"),
                                 ("--checkpoint", "minlm"), ("--checkpoint", "."), ("--checkpoints", "c"), ("--delimiter", ";"), ("--config", "d.csv"), ("--output", "d.csv"), ("--bf16",), ("--long-texts", "tail"), ("--long-texts", "windows"), ("--class-weights",), ("--unlabelled", "d.csv"), ("--task", "multi-label"), ("--task", "entities"), ("--task", "x")]), max_size=2)


def run_in(folder, words):
    "Exit code and error of a command whose working directory is `folder`."
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as end:
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
            words = ["train", "--data", file[0], "--checkpoint", tiny_checkpoint, "--max-length", "16", *(w for pair in [*chosen, *others] for w in pair)]
            code, err = run_in(folder, words)
            check(folder, file[0], before, code, err)
            assert sorted(os.listdir(folder)) == [file[0]]
    finally:
        sftbook.tasks.recipes.train_model = whole


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tiny_checkpoint):
    folder = tmp_path_factory.mktemp("fuzz")
    write_csv(folder / "data.csv", good_rows())
    code, err = run_in(folder, ["train", "--data", "data.csv", "--checkpoint", tiny_checkpoint, "--output", "run", "--epochs", "1", "--max-length", "16"])
    assert code == 0, err
    return folder / "run"


@FUZZ
@given(file=files(), command=st.sampled_from(["predict", "evaluate", "answers"]))
def test_predict_and_evaluate_anything(file, command, saved):
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        (folder / file[0]).write_bytes(file[1])
        before = sha256(folder / file[0])
        words = [*(["predict", saved, "--output", "out.csv"] if command == "answers" else [command, saved]), "--data", file[0]]
        code, err = run_in(folder, words)
        check(folder, file[0], before, code, err)
        assert (folder / "out.csv").exists() == (command == "answers" and code == 0)
