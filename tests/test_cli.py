"The command line on good and bad files: one message, exit code 2, nothing half-written."
import csv
import json
import random
import subprocess
import sys

import pandas as pd
import pytest

from sftbook.cli import main
from sftbook.core import quiet

SPORT = "the striker scored goal match keeper coach final team won cup".split()
BUSINESS = "shares profit bank market oil rose fell quarter a the".split()


def good_rows(n=60, seed=0):
    rng = random.Random(seed)
    rows = [(" ".join(rng.choices(SPORT, k=8)), "sport") for _ in range(n)]
    rows += [(" ".join(rng.choices(BUSINESS, k=8)), "business") for _ in range(n)]
    rng.shuffle(rows)
    return rows


def write_csv(path, rows, header=("text", "label"), **kwargs):
    with open(path, "w", newline="", encoding="utf-8") as f:
        csv.writer(f, **kwargs).writerows([header, *rows])
    return path


def run(capsys, *words):
    with pytest.raises(SystemExit) as end:
        main([str(w) for w in words])
    said = capsys.readouterr()
    return end.value.code, said.out, said.err


def names_in(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


BAD = {
    "missing column": ("text,topic\na,x\n", ["no column 'label'", "'topic'", "--label"]),
    "empty file": ("", ["empty"]),
    "header only": ("text,label\n", ["no rows"]),
    "one class only": ("text,label\na,x\nb,x\n", ["all 2 rows have the label 'x'"]),
    "an empty text": ("text,label\na,x\n,y\n", ["line 3", "the text is empty"]),
    "an empty label": ("text,label\na,x\nb,\n", ["line 3", "the label is empty"]),
    "labels that differ by case or spaces": (
        "text,label\na,Praise\nb,praise\nc,praise \nd,other\n",
        ["'Praise'", "'praise '", "--merge-labels"]),
    "a broken encoding": (
        "text,label\ncaf\xe9,x\n".encode("latin-1"), ["byte 14", "line 2", "UTF-8"]),
    "a million characters in a row": (
        "text,label\n" + "x" * 1_000_000 + ",a\nb,c\n", ["line 2", "1,000,000 characters"]),
    "fields that do not fit the header": ("text,label\nGood, but late,x\n", ["line 2", "3 fields"]),
    "an open quotation mark": ('text,label\n"open,x\n', ["CSV", "quotation mark"]),
    "a NUL character": ("text,label\na\0,x\n", ["NUL", "line 2"]),
    "a column named twice": ("text,text,label\na,b,x\n", ["'text' twice"]),
    "too few rows of a class": (
        "text,label\na b c,x\nd e f,x\ng h i,x\nj k l,x\nm n o,y\n", ["class 'y'"]),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_gets_one_clear_message(what, tmp_path, capsys):
    content, expected = BAD[what]
    file = tmp_path / "feedback.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    words = ("train", "--data", file, "--output", tmp_path / "run", "--checkpoint", "sftbook-zh")
    code, _, err = run(capsys, *words)
    assert code == 2
    assert all(part in err for part in expected), err
    assert "Traceback" not in err and err.count("sftbook:") == 1 and "What to do" in err
    assert len(err) < 2000
    assert names_in(tmp_path) == ["feedback.csv"]


def test_many_bad_rows_are_reported_together(tmp_path, capsys):
    file = write_csv(tmp_path / "feedback.csv", [("", "x")] * 30 + [("a", "y")])
    code, _, err = run(capsys, "train", "--data", file, "--output", tmp_path / "run")
    assert code == 2 and "30 problems" in err and "20 more" in err


@pytest.mark.parametrize("words, expected", [
    (("train", "--data", "no.csv"), "no such file"),
    (("train",), "--data"),
    (("trian",), "trian"),
    (("fetch", "bbcnews"), "did you mean bbc-news"),
    (("predict", "no/run", "text"), "no saved run"),
    (("train", "--data", "x.xlsx"), ".xlsx"),
])
def test_wrong_use_gets_one_clear_message(words, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.xlsx").write_bytes(b"PK")
    code, _, err = run(capsys, *words)
    assert code == 2 and expected in err and "Traceback" not in err
    assert names_in(tmp_path) == ["x.xlsx"]


def test_a_bad_setting_is_refused_before_anything_is_read(tmp_path, capsys):
    file = write_csv(tmp_path / "a.csv", good_rows())
    words = ("train", "--data", file, "--output", tmp_path / "run", "--epochs", "0")
    code, out, err = run(capsys, *words)
    assert code == 2 and "--epochs must be" in err and "Looking at" not in out


def test_the_process_itself_ends_with_2_and_without_a_traceback(tmp_path):
    command = [sys.executable, "-m", "sftbook.cli", "train", "--data", str(tmp_path / "no.csv")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "no such file" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_checkpoint):
    "A run that was trained on a CSV file with other column names."
    folder = tmp_path_factory.mktemp("trained")
    write_csv(folder / "feedback.csv", good_rows(), header=("comment", "topic"))
    words = ["train", "--data", str(folder / "feedback.csv"), "--text", "comment",
             "--label", "topic", "--checkpoint", str(tiny_checkpoint),
             "--output", str(folder / "run"), "--epochs", "6", "--learning-rate", "0.005",
             "--max-length", "32"]
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 0
    return folder


def test_a_run_is_trained_saved_and_opened_by_transformers(trained):
    import transformers

    files = {"config.json", "model.safetensors", "tokenizer.json", "task.json", "report.json",
             "README.md", "MANIFEST.json"}
    assert files <= set(names_in(trained / "run"))
    report = json.loads((trained / "run" / "report.json").read_text())
    assert report["metrics"]["accuracy"]["value"] > 0.9
    assert {"majority", "TF-IDF + linear"} <= set(report["baselines"])
    with quiet():
        classify = transformers.pipeline("text-classification", str(trained / "run"), device="cpu")
    answers = classify(["striker scored goal", "bank profit rose"], truncation=True)
    assert [answer["label"] for answer in answers] == ["sport", "business"]


def test_predict_keeps_the_order_and_writes_whole_files(trained, tmp_path, capsys):
    rows = good_rows(20, seed=5)
    file = write_csv(tmp_path / "new.csv", [(t,) for t, _ in rows], header=("comment",))
    words = ("predict", trained / "run", "--data", file, "--text", "comment")
    for output in (tmp_path / "a.csv", tmp_path / "a.jsonl"):
        code, _, err = run(capsys, *words, "--output", output)
        assert code == 0, err
    answers = pd.read_csv(tmp_path / "a.csv")
    assert answers["comment"].tolist() == [t for t, _ in rows]
    assert (answers["prediction"] == [label for _, label in rows]).mean() > 0.9
    lines = (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["prediction"] for line in lines] == answers["prediction"].tolist()
    assert (answers[["p_business", "p_sport"]].sum(axis=1) - 1).abs().max() < 1e-3


def test_predict_answers_on_the_terminal(trained, capsys):
    code, out, _ = run(capsys, "predict", trained / "run", "the striker scored", "oil shares fell")
    lines = out.strip().splitlines()
    assert code == 0 and [line.split()[0] for line in lines] == ["sport", "business"]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".tsv"])
def test_evaluate_reads_other_kinds_of_files(trained, suffix, tmp_path, capsys):
    frame = pd.DataFrame(good_rows(20, seed=7), columns=["text", "label"])
    file = tmp_path / f"new{suffix}"
    if suffix == ".jsonl":
        frame.to_json(file, orient="records", lines=True)
    elif suffix == ".parquet":
        frame.to_parquet(file)
    else:
        frame.to_csv(file, sep="\t", index=False)
    code, out, err = run(capsys, "evaluate", trained / "run", "--data", file)
    assert code == 0 and "accuracy" in out, err


def test_evaluate_refuses_labels_that_the_run_does_not_know(trained, tmp_path, capsys):
    file = write_csv(tmp_path / "new.csv", [("a", "sport"), ("b", "politics")])
    code, _, err = run(capsys, "evaluate", trained / "run", "--data", file)
    assert code == 2 and "'politics'" in err and "'business'" in err


def test_an_existing_output_is_refused_before_the_data_is_read(trained, capsys):
    code, _, err = run(capsys, "train", "--data", "no.csv", "--output", trained / "run")
    assert code == 2 and "already exists" in err and "--overwrite" in err


def test_a_damaged_run_is_noticed(trained, tmp_path, capsys):
    import shutil

    shutil.copytree(trained / "run", tmp_path / "run")
    with open(tmp_path / "run" / "config.json", "a") as f:
        f.write(" ")
    code, _, err = run(capsys, "predict", tmp_path / "run", "a text")
    assert code == 2 and "config.json" in err


def test_labels_are_merged_only_when_asked(tmp_path, tiny_checkpoint, capsys):
    rows = [(t, label.upper() if i % 9 == 0 else label) for i, (t, label) in enumerate(good_rows())]
    file = write_csv(tmp_path / "a.csv", rows)
    words = ("train", "--data", file, "--output", tmp_path / "run",
             "--checkpoint", tiny_checkpoint, "--epochs", "1", "--max-length", "16")
    assert run(capsys, *words)[0] == 2
    code, out, _ = run(capsys, *words, "--merge-labels")
    assert code == 0 and "2 spellings were merged" in out
    task = json.loads((tmp_path / "run" / "task.json").read_text())
    assert task["labels"] == ["business", "sport"]


def test_a_full_disk_is_a_message(trained, tmp_path, capsys, monkeypatch):
    import sftbook.core

    def full(path, text):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(sftbook.core, "write_text", full)
    words = ("predict", trained / "run", "the cup", "--output", tmp_path / "a.csv")
    code, _, err = run(capsys, *words)
    assert code == 2 and "No space left" in err and "Traceback" not in err
