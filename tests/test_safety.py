"Nothing of the user's is lost: not the data, not the model, not the answers. Each test is named after what broke."
import json
import os
import random
import signal
import subprocess
import sys
import time

import forked
import pandas as pd
import pytest
from test_cli import good_rows, names_in, run, write_csv

from sftbook.core import sha256
from sftbook.folders import check_manifest

QUICK = ("--epochs", "1", "--max-length", "16")


@pytest.fixture(scope="module")
def base(tmp_path_factory, tiny_checkpoint):
    "A run, and the file it was trained on."
    folder = tmp_path_factory.mktemp("base")
    write_csv(folder / "data.csv", good_rows())
    done = forked.command(folder, "train", "--data", "data.csv", "--checkpoint", tiny_checkpoint, "--output", "run", *QUICK)
    assert done.returncode == 0, done.stderr
    return folder


def command(folder, *words, **kwargs):
    "A command in a process of its own, in `folder`."
    where = {"cwd": folder, "capture_output": True, "text": True, "errors": "replace"}
    return subprocess.run([sys.executable, "-m", "sftbook.cli", *map(str, words)], **{**where, **kwargs})


@pytest.mark.parametrize("output", ["project", "project/data.csv", "link", "."])
def test_overwrite_never_deletes_what_it_did_not_make(output, tmp_path, monkeypatch, capsys):
    project = tmp_path / "project"
    project.mkdir()
    write_csv(project / "data.csv", good_rows())
    (project / "notes.txt").write_text("three weeks of notes")
    (tmp_path / "link").symlink_to(project)
    monkeypatch.chdir(project if output == "." else tmp_path)
    before = names_in(tmp_path)
    code, said, err = run(capsys, "train", "--data", project / "data.csv", "--output", output, "--overwrite", *QUICK)
    assert code == 2 and "What to do" in err and "Looking at" not in said
    assert names_in(tmp_path) == before and (project / "notes.txt").read_text() == "three weeks of notes"


def test_overwrite_replaces_a_saved_run_but_not_with_files_of_others_in_it(base, tmp_path, tiny_checkpoint, capsys):
    words = ("train", "--data", base / "data.csv", "--checkpoint", tiny_checkpoint, "--output", tmp_path / "run", *QUICK)
    assert run(capsys, *words)[0] == 0
    first = sha256(tmp_path / "run" / "model.safetensors")
    assert run(capsys, *words, "--seed", "7", "--overwrite")[0] == 0
    assert sha256(tmp_path / "run" / "model.safetensors") != first
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    code, _, err = run(capsys, *words, "--overwrite")
    assert code == 2 and "thesis.txt" in err and (tmp_path / "run" / "thesis.txt").read_text() == "mine"


def test_checkpoints_inside_the_output_are_refused(base, tmp_path, capsys):
    code, _, err = run(capsys, "train", "--data", base / "data.csv", "--output", tmp_path / "run", "--checkpoints", tmp_path / "run" / "c")
    assert code == 2 and "inside each other" in err and names_in(tmp_path) == []


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_closed_pipe_does_not_cost_the_model(unbuffered, base, tmp_path, tiny_checkpoint):
    words = ["train", "--data", base / "data.csv", "--checkpoint", tiny_checkpoint, "--output", tmp_path / "run", *QUICK]
    process = subprocess.Popen([sys.executable, "-m", "sftbook.cli", *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True, env=os.environ | {"PYTHONUNBUFFERED": unbuffered})
    process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait() == 0 and "Error" not in err, err
    check_manifest(tmp_path / "run")


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_a_console_without_the_letters_does_not_cost_the_model(encoding, tmp_path, tiny_checkpoint):
    names = {"sport": "物流", "business": "账单"}
    write_csv(tmp_path / "data.csv", [(t, names[label]) for t, label in good_rows()])
    env = os.environ | {"PYTHONIOENCODING": encoding}
    done = command(tmp_path, "train", "--data", "data.csv", "--checkpoint", tiny_checkpoint, "--output", "run", *QUICK, env=env)
    assert done.returncode == 0, done.stderr
    check_manifest(tmp_path / "run")
    done = command(tmp_path, "predict", "run", "late – again", env=env)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr


def test_an_argument_in_another_encoding_is_a_message(base):
    done = subprocess.run([sys.executable, "-m", "sftbook.cli", "predict", "run", b"caf\xe9"], cwd=base, capture_output=True, text=True)
    assert done.returncode == 2 and "not UTF-8" in done.stderr and "Traceback" not in done.stderr


def test_a_parent_that_is_a_file_is_found_before_training(base, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    code, said, err = run(capsys, "train", "--data", base / "data.csv", "--output", tmp_path / "file" / "run")
    assert code == 2 and "this is a file" in err and "Looking at" not in said


def test_two_runs_do_not_take_one_output(base, tmp_path, capsys):
    from sftbook.folders import reserve_folder

    with reserve_folder(tmp_path / "run"):
        code, said, err = run(capsys, "train", "--data", base / "data.csv", "--output", tmp_path / "run")
    assert code == 2 and "another process" in err and "Looking at" not in said and names_in(tmp_path) == []


def test_a_disk_too_small_is_found_before_training(base, tmp_path, tiny_checkpoint, capsys, monkeypatch):
    def full(fd, start, size):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    code, said, err = run(capsys, "train", "--data", base / "data.csv", "--checkpoint", tiny_checkpoint, "--output", tmp_path / "run", *QUICK)
    assert code == 2 and "MiB are needed here" in err and "fitting the head" not in said and names_in(tmp_path) == []


def test_a_save_that_fails_leaves_the_model_in_a_rescue_folder(base, tmp_path, tiny_checkpoint, capsys, monkeypatch):
    import sftbook.tasks.saved_runs

    whole = sftbook.tasks.saved_runs.save_run

    def save(folder, *arguments, **settings):
        if folder == tmp_path / "run":
            raise OSError(28, "No space left on device")
        return whole(folder, *arguments, **settings)

    monkeypatch.setattr(sftbook.tasks.saved_runs, "save_run", save)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "tmp").mkdir()
    code, _, err = run(capsys, "train", "--data", base / "data.csv", "--checkpoint", tiny_checkpoint, "--output", tmp_path / "run", *QUICK)
    assert code == 2 and "it is safe in" in err, err
    (rescued,) = (tmp_path / "tmp").glob("rescued-run-*")
    check_manifest(rescued)


def test_the_run_file_repeats_a_run_exactly(base, tmp_path, capsys):
    code, _, err = run(capsys, "train", "--config", base / "run" / "run.toml", "--data", base / "data.csv", "--output", tmp_path / "again")
    assert code == 0, err
    assert sha256(tmp_path / "again" / "model.safetensors") == sha256(base / "run" / "model.safetensors")


def test_an_unknown_option_in_a_run_file_is_named(base, tmp_path, capsys):
    (tmp_path / "run.toml").write_text('data = "x.csv"\nepoch = 3\n')
    code, _, err = run(capsys, "train", "--config", tmp_path / "run.toml")
    assert code == 2 and "'epoch'" in err and "did you mean 'epochs'" in err


def test_predict_never_overwrites_its_input_or_earlier_answers(base, tmp_path, capsys):
    file = write_csv(tmp_path / "in.csv", [("1", "the cup", "keep")], header=("id", "text", "note"))
    code, _, err = run(capsys, "predict", base / "run", "--data", file, "--output", file, "--overwrite")
    assert code == 2 and "the file with the texts" in err and "keep" in file.read_text()
    (tmp_path / "out.csv").write_text("earlier")
    code, _, err = run(capsys, "predict", base / "run", "--data", file, "--output", tmp_path / "out.csv")
    assert code == 2 and "already exists" in err and (tmp_path / "out.csv").read_text() == "earlier"
    code, _, err = run(capsys, "predict", base / "run", "--data", file, "--output", tmp_path / "no" / "out.csv")
    assert code == 2 and "no such folder" in err


def test_predict_keeps_all_columns_and_one_bad_row_blocks_nothing(base, tmp_path, capsys):
    rows = [("T1", "the cup", "text", "a"), ("T2", "", "label", "b"), ("T3", "bank profit", "", "c"), ("T4", "x" * 200, "", "d")]
    file = write_csv(tmp_path / "in.csv", rows, header=("id", "comment", "prediction", "probability"))
    code, said, err = run(capsys, "predict", base / "run", "--data", file, "--text", "comment", "--output", tmp_path / "out.csv", "--max-characters", "100")
    assert code == 0 and "2 of 4 rows have no answer" in said, err
    out = pd.read_csv(tmp_path / "out.csv", keep_default_na=False, dtype=str)
    assert out[["id", "comment", "prediction", "probability"]].values.tolist() == [list(r) for r in rows]
    assert out["problem"].map(bool).tolist() == [False, True, False, True] and out["prediction_2"].map(bool).tolist() == [True, False, True, False]


def test_a_killed_predict_leaves_whole_rows_and_goes_on(base, tmp_path):
    rng = random.Random(0)
    write_csv(tmp_path / "in.csv", [(str(i), " ".join(rng.choices(["cup", "bank", 'say "no"', "a\nb"], k=4))) for i in range(20_000)], header=("id", "text"))
    words = ("predict", base / "run", "--data", "in.csv", "--output")
    process = subprocess.Popen([sys.executable, "-m", "sftbook.cli", *map(str, words), "out.csv"], cwd=tmp_path, stderr=subprocess.PIPE)
    note = tmp_path / "out.csv.partial.json"  # is there from the first moment, without a row
    while process.poll() is None and not (note.exists() and json.loads(note.read_text())["rows"]):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "out.csv").exists()
    done = json.loads((tmp_path / "out.csv.partial.json").read_text())["rows"]
    assert 0 < done < 20_000 and len(pd.read_csv(tmp_path / "out.csv.partial")) >= done
    with open(tmp_path / "out.csv.partial", "ab") as f:
        f.write(b'12,"half a r')  # what a kill in the middle of a line would leave
    again = forked.command(tmp_path, *words, "out.csv", "--resume")
    assert again.returncode == 0 and "20,000 answers" in again.stdout, again.stderr
    whole = pd.read_csv(tmp_path / "out.csv", dtype=str)
    assert whole["id"].tolist() == [str(i) for i in range(20_000)] and not list(tmp_path.glob("*.partial*"))
    answer = forked.command(tmp_path, "predict", base / "run", whole["text"][19_999]).stdout.split()[0]
    assert whole["prediction"][19_999] == answer


def test_going_on_with_other_options_is_refused(base, tmp_path, capsys):
    file = write_csv(tmp_path / "in.csv", good_rows(30))
    (tmp_path / "out.csv.partial").write_text("text\n")
    (tmp_path / "out.csv.partial.json").write_text(json.dumps({"rows": 0, "bytes": 5, "identity": "other"}))
    code, _, err = run(capsys, "predict", base / "run", "--data", file, "--output", tmp_path / "out.csv", "--resume")
    assert code == 2 and "another run, file or option" in err


@pytest.mark.parametrize("words, expected", [
    (("--resume",), "--checkpoints"),
    (("--resume", "--checkpoints", "nothing"), "there is no checkpoint in nothing"),
    (("--seed", "-1"), "--seed"),
    (("--test-size", "0"), "--test-size"),
    (("--learning-rate", "nan"), "--learning-rate must be"),
    (("--max-length", "0"), "max-length"),
    (("--text", "label"), "same column"),
    (("--metric", "f1"), "--validation-size"),
    (("--device", "tpu"), "--device"),
])
def test_what_cannot_work_is_refused_before_a_row_is_read(words, expected, base, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, said, err = run(capsys, "train", "--data", base / "data.csv", "--output", tmp_path / "run", *words)
    assert code == 2 and expected in err and "Looking at" not in said, err
    assert names_in(tmp_path) == []


def test_ctrl_c_says_what_is_left_and_how_to_go_on(base, tmp_path, tiny_checkpoint):
    words = ["train", "--data", base / "data.csv", "--checkpoint", tiny_checkpoint, "--output", tmp_path / "run", "--checkpoints", tmp_path / "c", "--epochs", "500", "--max-length", "16"]
    for how in (signal.SIGINT, signal.SIGTERM):
        process = subprocess.Popen([sys.executable, "-m", "sftbook.cli", *map(str, words)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                                   preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
        before = set(tmp_path.glob("c/step-*"))
        while not set(tmp_path.glob("c/step-*")) - before and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(how)
        _, err = process.communicate()
        assert process.returncode == 130 and "with --resume goes on" in err and "Traceback" not in err, err
        assert [p.name for p in tmp_path.iterdir()] == ["c"]
        words = [*words, "--resume"] if "--resume" not in words else words


def test_help_is_grouped_and_each_command_has_an_example():
    done = subprocess.run([sys.executable, "-m", "sftbook.cli", "train", "--help"], capture_output=True, text=True)
    assert all(f"{group}:" in done.stdout for group in ("Rows", "Model", "Training", "Folders")) and "Example:\n  sftbook train" in done.stdout
