"Labels, keys, shares and folders that broke: each test is named after what broke."
import json
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from sftbook.core import ConfigError, DataError, counted
from sftbook.folders import check_target, write_manifest
from sftbook.labels import label_key
from sftbook.rows import load_rows
from sftbook.preprocessing.copies import duplicate_clusters, text_key
from sftbook.preprocessing.rows import audit, split_notes, split_rows

TEXTS = [f"text number {i} of the file" for i in range(60)]
REAL = ["login", "billing", "delivery"]


def jsonl(path, labels):
    lines = [json.dumps({"text": t, "label": labels[i % len(labels)]}) for i, t in enumerate(TEXTS)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def refused(path, **settings):
    with pytest.raises(DataError) as e:
        load_rows(path, **settings)
    return str(e.value)


LISTS = {
    "a list of JSON": (["a", "b"], "list of 2 labels"),
    "a list of one": (["a"], "list of 1 label,"),
    "no label in a list": ([], "the list of labels is empty"),
    "a list that pandas wrote": ("['billing']", "list of 1 label,"),
    "a list that json wrote": ('["a", "b"]', "list of 2 labels"),
    "an empty list that pandas wrote": (" [] ", "the list of labels is empty"),
    "a list that numpy wrote": ("[0 1 0]", "list of 3 labels"),
    "a tuple": ("('a', 'b')", "list of 2 labels"),
}


@pytest.mark.parametrize("what", LISTS)
def test_a_list_of_labels_is_refused_with_the_task_that_reads_it(what, tmp_path):
    label, said = LISTS[what]
    message = refused(jsonl(tmp_path / "d.jsonl", [label, *REAL]))
    assert said in message and "line 1," in message
    assert "--task multi-label (load_multi_label)" in message


def test_a_list_in_a_csv_cell_is_a_list(tmp_path):
    (tmp_path / "d.csv").write_text("text,label\na,\"['a', 'b']\"\nb,late\nc,rude\n")
    assert "row at line 2, column label: this is a list of 2 labels" in refused(tmp_path / "d.csv")


def test_an_object_that_pandas_wrote_is_no_class(tmp_path):
    file = jsonl(tmp_path / "d.jsonl", ["{'name': 'a'}", "b"])
    assert "take the name out of the object" in refused(file)


def test_names_in_brackets_stay_classes(tmp_path):
    names = ["(none)", "[INFO]", "[a, b", "{x}"]
    assert load_rows(jsonl(tmp_path / "d.jsonl", names)).features["label"].names == sorted(names)


def test_bytes_of_parquet_are_names_and_never_b_quotes(tmp_path):
    file = tmp_path / "d.parquet"
    pq.write_table(pa.table({"text": TEXTS, "label": ["straße".encode(), b"login"] * 30}), file)
    assert load_rows(file).features["label"].names == ["login", "straße"]
    pq.write_table(pa.table({"text": TEXTS, "label": [b"login", b"stra\xdfe"] * 30}), file)
    message = refused(file)
    assert "row 2, column label: these are bytes" in message and "UTF-8" in message


SCORES = {
    "per cent": [f"{i * 7 % 100}%" for i in range(60)],
    "a decimal comma": [f"{i / 10}".replace(".", ",") for i in range(60)],
    "commas between thousands": [f"{1000 + i * 7:,}" for i in range(60)],
    "a true minus sign": [f"\u2212{i * 0.37:.2f}" for i in range(60)],
    "exponents": [f"{i}e-3" for i in range(60)],
    "points between thousands": [f"1.{100 + i},5" for i in range(60)],
}


@pytest.mark.parametrize("how", SCORES)
def test_scores_are_numbers_however_they_are_written(how, tmp_path):
    assert "scores, not classes" in refused(jsonl(tmp_path / "d.jsonl", SCORES[how]))


@pytest.mark.parametrize("names", [
    ["1", "2", "3", "4", "5"], ["10%", "50%", "90%"], ["1,000", "2,000"], ["\u22121", "0", "1"],
    ["1.5", "2", "3"]])
def test_a_few_whole_numbers_stay_classes(names, tmp_path):
    rows = load_rows(jsonl(tmp_path / "d.jsonl", names))
    assert sorted(rows.features["label"].names) == sorted(names)


def test_row_numbers_are_no_scores(tmp_path):
    message = refused(jsonl(tmp_path / "d.jsonl", list(range(60))))
    assert "60 different numbers for 60 rows: this looks like a row number" in message
    assert "--label" in message


@pytest.mark.parametrize("a, b", [
    ("1.5", "1.50"), ("1", "+1"), ("1", "1e0"), ("0", "-0.0"), (".5", "0.5"), ("1000", "1e3"),
    ("1.0", "1"), ("\u22121", "-1"), ("e-mail", "e\u2011mail"), ("e-mail", "e\u2013mail"),
    ("\u2764", "\u2764\ufe0f"), ("\u2764\ufe0e", "\u2764")])
def test_labels_that_look_alike_are_one_class_or_a_question(a, b, tmp_path):
    assert label_key(a) == label_key(b)
    file = jsonl(tmp_path / "d.jsonl", [a, b, "other"])
    assert "--merge-labels" in refused(file)
    assert len(load_rows(file, merge_labels=True).features["label"].names) == 2


@pytest.mark.parametrize("a, b", [
    ("007", "7"), ("1.5", "15"), ("-1", "1"), ("1e1", "1"), ("1.", "1"),
    ("late_parcel", "late parcel"), ("e-mail", "email"), ("👍🏻", "👍🏿")])
def test_labels_that_differ_stay_two(a, b):
    assert label_key(a) != label_key(b)


def test_a_key_of_numbers_is_its_own_key():
    rng = random.Random(0)
    for _ in range(20_000):
        name = "".join(rng.choices("0019.e+-\u2212\u2011 %,\ufe0f", k=rng.randint(1, 7)))
        assert label_key(label_key(name)) == label_key(name), name


def test_kinds_of_hyphens_are_shown_so_that_a_person_sees_them(tmp_path):
    file = jsonl(tmp_path / "d.jsonl", ["e\u2011mail", "e-mail"])
    assert r"'e\u2011mail' (30 rows)" in refused(file)


@pytest.mark.parametrize("name", ["nan", "NaN", "NULL", "None", "N/A", "#N/A", "-"])
def test_a_label_that_looks_like_a_missing_value_is_said(name, tmp_path):
    rows = load_rows(jsonl(tmp_path / "d.jsonl", ["late", "rude", name]))
    assert name in rows.features["label"].names
    said = f"label {name!r} (20 rows, first at line 3) looks like a missing value"
    assert f"{said}; it is used as a class" in rows.info.description


def test_none_of_these_is_no_missing_value(tmp_path):
    file = jsonl(tmp_path / "d.jsonl", ["late", "none", "other"])
    assert load_rows(file).info.description == ""


def test_none_is_not_said_to_be_written_in_two_ways(tmp_path):
    file = jsonl(tmp_path / "d.jsonl", ["None", None, "late"])
    rows = load_rows(file, labels=["None", "late"])
    assert rows.info.description == "20 rows without a label were left out"


def test_an_unknown_label_is_named_with_its_lines(tmp_path):
    file = jsonl(tmp_path / "d.jsonl", ["late", "noise", "late", "spam"])
    message = refused(file, labels=["late", "rude"])
    assert "'noise' (lines 2, 6, 10, 14, 18, 22, 26, 30, 34, 38 and 5 more), " in message
    assert " and 5 more), 'spam' (lines 4, " in message
    one = tmp_path / "e.jsonl"
    one.write_text('{"text": "a", "label": "noise"}')
    assert "'noise' (line 1)\n" in refused(one, labels=["late", "rude"])


def test_parquet_and_arrays_have_rows_and_no_lines(tmp_path):
    bad = [{"text": "a", "label": "x"}, {"text": "", "label": "y"}]
    pq.write_table(pa.Table.from_pylist(bad), tmp_path / "d.parquet")
    (tmp_path / "array.json").write_text("\n  " + json.dumps(bad, indent=1))
    (tmp_path / "array.jsonl").write_text(json.dumps(bad))
    (tmp_path / "inside.json").write_text(json.dumps({"data": bad}))
    for name in ("d.parquet", "array.json", "array.jsonl", "inside.json"):
        assert f"{name}, row 2, column text" in refused(tmp_path / name)
    (tmp_path / "lines.json").write_text("\n\n".join(map(json.dumps, bad)))
    (tmp_path / "d.csv").write_text("text,label\na,x\n,y\n")
    for name in ("lines.json", "d.csv"):
        assert f"{name}, row at line 3, column text" in refused(tmp_path / name)


def test_objects_inside_rows_get_a_remedy_that_can_work(tmp_path):
    result = {"value": {"choices": ["delivery"]}}
    row = {"id": 1, "data": {"text": "Late"}, "annotations": [{"result": [result]}]}
    (tmp_path / "d.json").write_text(json.dumps([row]))
    message = refused(tmp_path / "d.json")
    assert 'row["data"]["text"]' in message
    assert 'row["annotations"][0]["result"][0]["value"]["choices"][0]' in message
    assert row["data"]["text"] == "Late"  # what the two paths lead to
    assert row["annotations"][0]["result"][0]["value"]["choices"][0] == "delivery"
    assert "--text" not in message


def rows_of(texts, labels, file=None):
    names = [f"class {i}" for i in range(max(labels) + 1)]
    features = Features(text=Value("string"), label=ClassLabel(names=names))
    rows = Dataset.from_dict({"text": texts, "label": labels}, features=features)
    return rows.add_column("file", [file] * len(texts)) if file else rows


def test_one_row_is_no_cluster_and_not_the_reason():
    rows = rows_of([f"text {i}" for i in range(80)], [i % 40 for i in range(80)])
    clusters = np.arange(80)
    sizes = dict(validation_size=0.0, test_size=0.3)
    notes = split_notes(rows, clusters, split_rows(rows, clusters, **sizes), **sizes)
    assert notes == [
        "the test part has 40 rows, 24 were asked for",
        "each of the 40 classes is dealt in whole rows, and half of them have 2 rows or fewer"]


def test_a_class_that_is_too_small_is_named_with_its_file():
    rows = rows_of(["a", "b", "c", "d", "e"], [0, 0, 0, 0, 1], "feedback.csv")
    said = "feedback.csv, class 'class 1': its 1 row leaves none for"
    with pytest.raises(DataError, match=said) as e:
        split_rows(rows, np.arange(5), 0.0, 0.3)
    assert "share" not in str(e.value)  # no share helps one row
    rows = rows_of(list("abcdefgh"), [0] * 5 + [1] * 3)
    with pytest.raises(DataError, match="other test and validation shares"):
        split_rows(rows, np.arange(8), 0.05, 0.05)


def test_an_audit_without_labels_has_no_empty_line_of_classes():
    look = audit(Dataset.from_dict({"text": ["a", "b"]}))
    assert look.labels == {} and "class" not in str(look) and "several labels" not in str(look)
    assert all(line.split(":")[1].strip() for line in str(look).splitlines())


@pytest.mark.parametrize("face", [
    "(-_-)", "-_-", "(._.)", "(;_;)", "(-.-)", "(–_–)", "(・_・)", "('-')", "(:", "):", ":)", ":'(",
    "^_^", "¯\\_(ツ)_/¯"])
def test_a_face_is_not_empty_and_says_something(face):
    assert text_key(face) and text_key(f"well {face}") != text_key("well")


def test_faces_that_look_the_other_way_differ():
    assert len({text_key(t) for t in ("great(:", "great):", "great:(", "great:)")}) == 4
    assert text_key("see (note): x") == text_key("see note: x")
    assert text_key("...") == text_key("?!") == ""


def test_a_key_of_signs_is_its_own_key():
    rng = random.Random(0)
    for _ in range(20_000):
        text = "".join(rng.choices("()[]:;=-^'_.,a3d \u2013・。1+−\u200b", k=rng.randint(1, 7)))
        assert text_key(text_key(text)) == text_key(text), text


def test_the_rule_for_shared_tails_is_the_one_in_the_book():
    tail = " ".join(f"legal{i}" for i in range(40))
    mails = [" ".join(f"own{i}x{k}" for k in range(8)) + " " + tail for i in range(11)]
    thanks = [f"thanks own{i} works {tail}" for i in range(30)]
    assert len(set(duplicate_clusters(mails[:10]))) == 1
    assert len(set(duplicate_clusters(mails))) == 11
    assert len(set(duplicate_clusters(thanks))) == 1


def saved(folder, *names):
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_text("1")
    write_manifest(folder)
    return folder


def test_a_manifest_of_somebody_else_does_not_make_a_run(tmp_path):
    project = saved(tmp_path / "project", "data.csv", "notes.txt")
    with pytest.raises(ConfigError, match="no run has written: MANIFEST.json, data.csv, notes.txt"):
        check_target(project, overwrite=True)


def test_an_edited_file_of_a_run_is_not_replaced(tmp_path):
    run = saved(tmp_path / "run", "task.json", "README.md", "weights")
    assert check_target(run, overwrite=True) == run
    (run / "README.md").write_text("mine")
    said = "changed after it was written: README.md\n.*move it, or choose another"
    with pytest.raises(ConfigError, match=said):
        check_target(run, overwrite=True)


def test_a_run_inside_a_run_and_a_cut_checkpoint_are_replaced(tmp_path):
    run = tmp_path / "run"
    saved(run / "linear", "task.json", "terms.json")
    (run / "task.json").write_text("1")
    write_manifest(run)
    assert check_target(run, overwrite=True) == run
    (run / "linear" / "MANIFEST.json").write_text("{}")
    with pytest.raises(ConfigError, match="linear/MANIFEST.json"):
        check_target(run, overwrite=True)
    step = saved(tmp_path / "step-00000001", "state.json", "model.safetensors")
    (step / "model.safetensors").write_text("")
    assert check_target(step, overwrite=True) == step


def test_a_link_in_a_run_is_not_of_the_run(tmp_path):
    run = saved(tmp_path / "run", "task.json")
    (run / "more").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="no run has written: more"):
        check_target(run, overwrite=True)


@pytest.mark.parametrize("above", ["/", ".."])
def test_a_folder_above_is_not_the_folder_you_are_in(above):
    with pytest.raises(ConfigError) as e:
        check_target(above, overwrite=True)
    assert "the folder you are in" not in str(e.value) and "working folder" in str(e.value)


def test_one_row_is_no_rows():
    assert (counted(1, "row"), counted(0, "row")) == ("1 row", "0 rows")
    assert counted(2000, "row", "were") == "2,000 rows were"
    assert counted(1, "row", "were") == "1 row was"
