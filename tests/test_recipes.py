"Every kind of rows through train, evaluate and predict; and what the options of train promise."
import json
import random
import signal
import subprocess
import sys
import time

import pytest
from test_cli import BUSINESS, SPORT, good_rows, run, write_csv

from sftbook.tasks.saved_runs import load_run

QUICK = ("--epochs", "1", "--max-length", "24", "--batch-size", "8")


def several_labels(path, n=160):
    rng, words = random.Random(1), {"sport": SPORT, "money": BUSINESS}
    with open(path, "w", encoding="utf-8") as f:
        for _ in range(n):
            labels = [name for name in words if rng.random() < 0.5]
            text = [w for name in labels for w in rng.choices(words[name], k=6)] or rng.choices("so it is not was".split(), k=6)
            f.write(json.dumps(dict(text=" ".join(text), labels=labels)) + "\n")
    return path


def entities(path, n=80):
    rng = random.Random(2)
    with open(path, "w", encoding="utf-8") as f:
        for _ in range(n):
            words, team = rng.choices(BUSINESS, k=5), " ".join(rng.choices(SPORT[:4], k=rng.randint(1, 2)))
            place = rng.randrange(6)
            text = " ".join([*words[:place], team, *words[place:]])
            start = text.index(team)
            f.write(json.dumps(dict(text=text, spans=[[start, start + len(team), "TEAM"]])) + "\n")
    return path


def test_several_labels_go_through_all_commands(tmp_path, tiny_checkpoint, capsys):
    file, folder = several_labels(tmp_path / "a.jsonl"), tmp_path / "run"
    words = ("train", "--task", "multi-label", "--label", "labels", "--data", file, "--output", folder)
    code, said, err = run(capsys, *words, "--checkpoint", tiny_checkpoint, "--validation-size", "0.2", *QUICK)
    assert code == 0 and "thresholds: " in said and "f1_micro" in said and "TF-IDF + linear" in said, err
    code, said, err = run(capsys, "evaluate", folder, "--data", file, "--label", "labels")
    assert code == 0 and "hamming_loss" in said, err
    code, said, err = run(capsys, "predict", folder, "--data", file, "--output", tmp_path / "b.jsonl")
    assert code == 0, err
    answers = [json.loads(line) for line in (tmp_path / "b.jsonl").read_text().splitlines()]
    assert len(answers) == 160 and isinstance(answers[0]["prediction"], list) and 0 <= answers[0]["p_sport"] <= 1
    assert len(load_run(folder).task.thresholds) == 2
    assert run(capsys, "predict", folder, "the final goal", "--min-confidence", "1")[1].startswith(("[]", "(none)"))


def test_entities_go_through_all_commands(tmp_path, tiny_checkpoint, capsys):
    file, folder = entities(tmp_path / "a.jsonl"), tmp_path / "run"
    words = ("train", "--task", "entities", "--data", file, "--output", folder, "--checkpoint", tiny_checkpoint)
    code, said, err = run(capsys, *words, "--learning-rate", "1e-2", *QUICK, "--epochs", "8")
    assert code == 0 and "most frequent tag" in said and "TEAM" in said, err
    code, said, err = run(capsys, "evaluate", folder, "--data", file)
    assert code == 0 and "f1" in said, err
    long = "shares " * 60 + "striker rose"  # more pieces than the model reads
    rows = [dict(id=1, text=long), dict(id=2, text=["goal", "fell"]), dict(id=3, text=" ")]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, said, err = run(capsys, "predict", folder, "--data", tmp_path / "b.jsonl", "--output", tmp_path / "c.jsonl")
    assert code == 0 and "1 of 3 rows have no answer" in said, err
    answers = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
    found = answers[0]["prediction"]
    assert all(long[e["start"]:e["end"]] == e["text"] and e["label"] == "TEAM" for e in found)
    assert len(answers[1]["prediction"]) == 2 and answers[2]["problem"] == "the text is empty"


@pytest.mark.parametrize("option", ["--merge-labels", "--class-weights", "--min-rows=5"])
def test_an_option_of_another_task_is_refused(option, tmp_path, capsys):
    file = several_labels(tmp_path / "a.jsonl", 4)
    code, _, err = run(capsys, "train", "--task", "multi-label", "--data", file, "--output", tmp_path / "run", option)
    assert code == 2 and option.split("=")[0] in err and "not for --task multi-label" in err


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_checkpoint):
    "A run with many of the options of train, and what was said."
    folder = tmp_path_factory.mktemp("options")
    write_csv(folder / "data.csv", good_rows(100))
    write_csv(folder / "more.csv", [(text,) for text, _ in good_rows(60, seed=5)], header=("text",))
    words = ["train", "--data", "data.csv", "--output", "run", "--checkpoint", str(tiny_checkpoint), "--validation-size", "0.3",
             "--class-weights", "--long-texts", "windows", "--unlabelled", "more.csv", "--checkpoints", "c",
             "--epochs", "2", "--max-length", "8", "--batch-size", "8"]
    done = subprocess.run([sys.executable, "-m", "sftbook.cli", *words], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder, words, done.stdout


def test_the_linear_model_is_a_run_of_its_own(trained, capsys):
    folder, _, said = trained
    assert "The linear model is" in said and "run/linear" in said
    code, answers, err = run(capsys, "predict", folder / "run" / "linear", "the striker scored")
    assert code == 0 and answers.startswith("sport"), err
    code, report, err = run(capsys, "evaluate", folder / "run" / "linear", "--data", folder / "data.csv")
    assert code == 0 and "accuracy" in report, err
    assert "load_run" in (folder / "run" / "linear" / "README.md").read_text()
    code, _, err = run(capsys, "predict", folder / "run" / "linear", "--data", folder / "more.csv", "--output", folder / "linear.csv")
    assert code == 0 and len((folder / "linear.csv").read_text().splitlines()) == 121, err


def test_texts_without_labels_weights_windows_and_a_temperature(trained):
    folder, _, said = trained
    task = load_run(folder / "run").task
    assert "of 120 texts without label got one" in said or "texts without label got one" in said
    assert "temperature " in said and task.long_texts == "windows" and len(task.class_weights) == 2
    assert "was not read" not in said  # windows read everything


@pytest.mark.parametrize("change", [("--max-length", "16"), ("--validation-size", "0.2"), ("--seed", "3")])
def test_a_resume_with_another_option_names_it_before_anything_is_loaded(change, trained, capsys, monkeypatch):
    folder, words, _ = trained
    monkeypatch.chdir(folder)
    code, said, err = run(capsys, *words, "--output", "again", "--resume", *change)
    assert code == 2 and f"{change[0]} was" in err and f"now it is {change[1]}" in err and "Looking at" not in said, err


def test_a_broken_csv_is_not_written_for_a_lone_carriage_return(trained, tmp_path, capsys):
    rows = [dict(id=1, text="old mac\rline"), dict(id=2, text='say "goal"')]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "o.csv"
    assert run(capsys, "predict", trained[0] / "run", "--data", tmp_path / "a.jsonl", "--output", out)[0] == 0
    import csv

    with open(out, newline="", encoding="utf-8") as f:
        back = list(csv.DictReader(f))
    assert [row["text"] for row in back] == ["old mac\rline", 'say "goal"']


def test_a_file_of_the_user_beside_the_answers_is_not_taken(trained, tmp_path, capsys):
    write_csv(tmp_path / "a.csv", [("the cup",)], header=("text",))
    notes = tmp_path / "o.csv.partial"
    notes.write_text("my notes")
    code, _, err = run(capsys, "predict", trained[0] / "run", "--data", tmp_path / "a.csv", "--output", tmp_path / "o.csv")
    assert code == 2 and "in the way" in err and notes.read_text() == "my notes"


def test_answers_of_a_stopped_run_are_not_thrown_away_without_a_word(trained, tmp_path, capsys):
    write_csv(tmp_path / "a.csv", [("the cup",)], header=("text",))
    (tmp_path / "o.csv.partial").write_text("text,prediction\n")
    (tmp_path / "o.csv.partial.json").write_text(json.dumps(dict(rows=512, bytes=16, identity=[])))
    words = ("predict", trained[0] / "run", "--data", tmp_path / "a.csv", "--output", tmp_path / "o.csv")
    code, _, err = run(capsys, *words)
    assert code == 2 and "512 answered rows" in err and "--resume" in err
    assert run(capsys, *words, "--overwrite")[0] == 0


def test_a_closed_output_does_not_cost_the_model(tmp_path, tiny_checkpoint):
    write_csv(tmp_path / "data.csv", good_rows())
    words = f"{sys.executable} -m sftbook.cli train --data data.csv --output a --checkpoint {tiny_checkpoint} {' '.join(QUICK)} >&-"
    done = subprocess.run(words, shell=True, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr and (tmp_path / "a" / "task.json").exists(), done.stderr


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_twice_ends_evaluate_with_the_sentence(ending, trained, tmp_path):
    write_csv(tmp_path / "big.csv", good_rows(4000))
    process = subprocess.Popen([sys.executable, "-m", "sftbook.cli", "evaluate", trained[0] / "run", "--data", tmp_path / "big.csv"],
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    time.sleep(3)
    for _ in range(3):
        process.send_signal(ending)
        time.sleep(0.05)
    said = process.communicate(timeout=60)[1]
    assert process.returncode in (0, 130) and "Traceback" not in said, said
    assert process.returncode == 0 or "sftbook: stopped; nothing was left half-written" in said


def test_a_test_file_with_a_class_too_rare_to_train_on(tmp_path, tiny_checkpoint, capsys):
    rows = [*good_rows(), *[(f"noise {i} of some kind", "noise") for i in range(3)]]
    train, test = write_csv(tmp_path / "a.csv", rows), write_csv(tmp_path / "b.csv", [*good_rows(10, seed=9), ("what a noise", "noise")])
    words = ("train", "--data", train, "--test-data", test, "--output", tmp_path / "run", "--checkpoint", tiny_checkpoint, *QUICK)
    code, said, err = run(capsys, *words, "--min-rows", "5")
    assert code == 0 and "1 row has a class too rare to train on" in said, err
    code, _, err = run(capsys, *words, "--min-rows", "500", "--overwrite")
    assert code == 2 and "--min-rows" in err


def test_a_test_file_that_holds_all_training_rows_is_said(tmp_path, capsys):
    file = write_csv(tmp_path / "a.csv", good_rows())
    code, _, err = run(capsys, "train", "--data", file, "--test-data", file, "--output", tmp_path / "run", *QUICK)
    assert code == 2 and "all stand in the test file" in err


def test_tab_separated_answers_are_read_back_whole(trained, tmp_path, capsys):
    texts = ['"quoted" goal', "a\tb", "two\nlines", '"', "plain"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(dict(text=text)) + "\n" for text in texts))
    words = ("predict", trained[0] / "run", "--data", tmp_path / "a.jsonl", "--output", tmp_path / "o.tsv")
    code, _, err = run(capsys, *words)
    from sftbook.records import open_records

    assert code == 0 and [record["text"] for _, record in open_records(tmp_path / "o.tsv")] == texts, err
