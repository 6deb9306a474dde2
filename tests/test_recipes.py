"Every kind of rows through train, evaluate and predict; and what the options of train promise."
import csv
import json
import random
import signal
import subprocess
import sys
import time

import forked
import pytest
from test_cli import BUSINESS, SPORT, good_rows, run, write_csv

from sftbook.records import open_records
from sftbook.tasks.saved_runs import load_run

QUICK = ("--epochs", "1", "--max-length", "24", "--batch-size", "8")


def several_labels(path, n=160):
    rng, words = random.Random(1), {"sport": SPORT, "money": BUSINESS}
    with open(path, "w", encoding="utf-8") as f:
        for _ in range(n):
            labels = [name for name in words if rng.random() < 0.5]
            text = [word for name in labels for word in rng.choices(words[name], k=6)]
            text = text or rng.choices("so it is not was".split(), k=6)
            f.write(json.dumps(dict(text=" ".join(text), labels=labels)) + "\n")
    return path


def entities(path, n=80):
    rng = random.Random(2)
    with open(path, "w", encoding="utf-8") as f:
        for _ in range(n):
            words = rng.choices(BUSINESS, k=5)
            team = " ".join(rng.choices(SPORT[:4], k=rng.randint(1, 2)))
            place = rng.randrange(6)
            text = " ".join([*words[:place], team, *words[place:]])
            start = text.index(team)
            f.write(json.dumps(dict(text=text, spans=[[start, start + len(team), "TEAM"]])) + "\n")
    return path


def write_rows(path, rows):
    "Rows as JSON Lines."
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_several_labels_go_through_all_commands(tmp_path, tiny_checkpoint, capsys):
    file, folder = several_labels(tmp_path / "a.jsonl"), tmp_path / "run"
    words = ("train", "--task", "multi-label", "--data", file, "--label", "labels",
             "--output", folder, "--checkpoint", tiny_checkpoint, "--validation-size", "0.2")
    code, said, err = run(capsys, *words, *QUICK)
    assert code == 0 and "thresholds: " in said, err
    assert "f1_micro" in said and "TF-IDF + linear" in said
    code, said, err = run(capsys, "evaluate", folder, "--data", file, "--label", "labels")
    assert code == 0 and "hamming_loss" in said, err
    out = tmp_path / "b.jsonl"
    code, said, err = run(capsys, "predict", folder, "--data", file, "--output", out)
    assert code == 0, err
    answers = read_rows(out)
    assert len(answers) == 160 and isinstance(answers[0]["prediction"], list)
    assert 0 <= answers[0]["p_sport"] <= 1
    assert len(load_run(folder).task.thresholds) == 2
    _, said, _ = run(capsys, "predict", folder, "the final goal", "--min-confidence", "1")
    assert said.startswith(("[]", "(none)"))


def test_entities_go_through_all_commands(tmp_path, tiny_checkpoint, capsys):
    file, folder = entities(tmp_path / "a.jsonl"), tmp_path / "run"
    words = ("train", "--task", "entities", "--data", file, "--output", folder,
             "--checkpoint", tiny_checkpoint)
    code, said, err = run(capsys, *words, "--learning-rate", "1e-2", *QUICK, "--epochs", "8")
    assert code == 0 and "most frequent tag" in said and "TEAM" in said, err
    code, said, err = run(capsys, "evaluate", folder, "--data", file)
    assert code == 0 and "f1" in said, err
    long = "shares " * 60 + "striker rose"  # more pieces than the model reads
    rows = [dict(id=1, text=long), dict(id=2, text=["goal", "fell"]), dict(id=3, text=" ")]
    new, out = write_rows(tmp_path / "b.jsonl", rows), tmp_path / "c.jsonl"
    code, said, err = run(capsys, "predict", folder, "--data", new, "--output", out)
    assert code == 0 and "1 of 3 rows have no answer" in said, err
    answers = read_rows(out)
    found = answers[0]["prediction"]
    assert all(long[e["start"]:e["end"]] == e["text"] and e["label"] == "TEAM" for e in found)
    assert len(answers[1]["prediction"]) == 2 and answers[2]["problem"] == "the text is empty"


@pytest.mark.parametrize("option", ["--merge-labels", "--class-weights", "--min-rows=5"])
def test_an_option_of_another_task_is_refused(option, tmp_path, capsys):
    file = several_labels(tmp_path / "a.jsonl", 4)
    words = ("train", "--task", "multi-label", "--data", file, "--output", tmp_path / "run")
    code, _, err = run(capsys, *words, option)
    assert code == 2 and option.split("=")[0] in err and "not for --task multi-label" in err


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_checkpoint):
    "A run with many of the options of train, and what was said."
    folder = tmp_path_factory.mktemp("options")
    write_csv(folder / "data.csv", good_rows(100))
    write_csv(folder / "more.csv", [(text,) for text, _ in good_rows(60, seed=5)], header=("text",))
    words = ["train", "--data", "data.csv", "--output", "run", "--checkpoint", str(tiny_checkpoint),
             "--validation-size", "0.3", "--class-weights", "--long-texts", "windows",
             "--unlabelled", "more.csv", "--checkpoints", "c", "--epochs", "2",
             "--max-length", "8", "--batch-size", "8"]
    done = forked.command(folder, *words)
    assert done.returncode == 0, done.stderr
    return folder, words, done.stdout


def test_the_linear_model_is_a_run_of_its_own(trained, capsys):
    folder, _, said = trained
    linear, out = folder / "run" / "linear", folder / "linear.csv"
    assert "The linear model is" in said and "run/linear" in said
    code, answers, err = run(capsys, "predict", linear, "the striker scored")
    assert code == 0 and answers.startswith("sport"), err
    code, report, err = run(capsys, "evaluate", linear, "--data", folder / "data.csv")
    assert code == 0 and "accuracy" in report, err
    assert "load_run" in (linear / "README.md").read_text()
    words = ("predict", linear, "--data", folder / "more.csv", "--output", out)
    code, _, err = run(capsys, *words)
    assert code == 0 and len(out.read_text().splitlines()) == 121, err


def test_texts_without_labels_weights_windows_and_a_temperature(trained):
    folder, _, said = trained
    task = load_run(folder / "run").task
    assert "texts without label got one" in said and "temperature " in said
    assert task.long_texts == "windows" and len(task.class_weights) == 2
    assert "was not read" not in said  # windows read everything


@pytest.mark.parametrize("option, value", [
    ("--max-length", "16"), ("--validation-size", "0.2"), ("--seed", "3")])
def test_a_resume_with_another_option_names_it_before_anything_is_loaded(
        option, value, trained, capsys, monkeypatch):
    folder, words, _ = trained
    monkeypatch.chdir(folder)
    code, said, err = run(capsys, *words, "--output", "again", "--resume", option, value)
    assert code == 2 and f"{option} was" in err and f"now it is {value}" in err, err
    assert "Looking at" not in said


def test_a_broken_csv_is_not_written_for_a_lone_carriage_return(trained, tmp_path, capsys):
    rows = [dict(id=1, text="old mac\rline"), dict(id=2, text='say "goal"')]
    file, out = write_rows(tmp_path / "a.jsonl", rows), tmp_path / "o.csv"
    assert run(capsys, "predict", trained[0] / "run", "--data", file, "--output", out)[0] == 0
    with open(out, newline="", encoding="utf-8") as f:
        back = list(csv.DictReader(f))
    assert [row["text"] for row in back] == ["old mac\rline", 'say "goal"']


def test_a_file_of_the_user_beside_the_answers_is_not_taken(trained, tmp_path, capsys):
    file = write_csv(tmp_path / "a.csv", [("the cup",)], header=("text",))
    notes = tmp_path / "o.csv.partial"
    notes.write_text("my notes")
    words = ("predict", trained[0] / "run", "--data", file, "--output", tmp_path / "o.csv")
    code, _, err = run(capsys, *words)
    assert code == 2 and "in the way" in err and notes.read_text() == "my notes"


def test_answers_of_a_stopped_run_are_not_thrown_away_without_a_word(trained, tmp_path, capsys):
    file = write_csv(tmp_path / "a.csv", [("the cup",)], header=("text",))
    note = dict(rows=512, bytes=16, identity=[])
    (tmp_path / "o.csv.partial").write_text("text,prediction\n")
    (tmp_path / "o.csv.partial.json").write_text(json.dumps(note))
    words = ("predict", trained[0] / "run", "--data", file, "--output", tmp_path / "o.csv")
    code, _, err = run(capsys, *words)
    assert code == 2 and "512 answered rows" in err and "--resume" in err
    assert run(capsys, *words, "--overwrite")[0] == 0


def test_a_closed_output_does_not_cost_the_model(tmp_path, tiny_checkpoint):
    write_csv(tmp_path / "data.csv", good_rows())
    options = f"--data data.csv --output a --checkpoint {tiny_checkpoint} {' '.join(QUICK)}"
    line = f"{sys.executable} -m sftbook.cli train {options} >&-"
    done = subprocess.run(line, shell=True, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert (tmp_path / "a" / "task.json").exists()


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_twice_ends_evaluate_with_the_sentence(ending, trained, tmp_path):
    write_csv(tmp_path / "big.csv", good_rows(4000))
    command = [sys.executable, "-m", "sftbook.cli", "evaluate", trained[0] / "run",
               "--data", tmp_path / "big.csv"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                               text=True)
    time.sleep(3)
    for _ in range(3):
        process.send_signal(ending)
        time.sleep(0.05)
    said = process.communicate(timeout=60)[1]
    assert process.returncode in (0, 130) and "Traceback" not in said, said
    assert process.returncode == 0 or "sftbook: stopped; nothing was left half-written" in said


def test_a_test_file_with_a_class_too_rare_to_train_on(tmp_path, tiny_checkpoint, capsys):
    rows = [*good_rows(), *[(f"noise {i} of some kind", "noise") for i in range(3)]]
    later = [*good_rows(10, seed=9), ("what a noise", "noise")]
    train, test = write_csv(tmp_path / "a.csv", rows), write_csv(tmp_path / "b.csv", later)
    words = ("train", "--data", train, "--test-data", test, "--output", tmp_path / "run",
             "--checkpoint", tiny_checkpoint, *QUICK)
    code, said, err = run(capsys, *words, "--min-rows", "5")
    assert code == 0 and "1 row has a class too rare to train on" in said, err
    code, _, err = run(capsys, *words, "--min-rows", "500", "--overwrite")
    assert code == 2 and "--min-rows" in err


def test_a_test_file_that_holds_all_training_rows_is_said(tmp_path, capsys):
    file = write_csv(tmp_path / "a.csv", good_rows())
    words = ("train", "--data", file, "--test-data", file, "--output", tmp_path / "run")
    code, _, err = run(capsys, *words, *QUICK)
    assert code == 2 and "all stand in the test file" in err


def test_tab_separated_answers_are_read_back_whole(trained, tmp_path, capsys):
    texts = ['"quoted" goal', "a\tb", "two\nlines", '"', "plain"]
    file, out = write_rows(tmp_path / "a.jsonl", [{"text": t} for t in texts]), tmp_path / "o.tsv"
    code, _, err = run(capsys, "predict", trained[0] / "run", "--data", file, "--output", out)
    assert code == 0, err
    assert [record["text"] for _, record in open_records(out)] == texts
