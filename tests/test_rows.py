"""Rows of other people's files: read, or one message; nothing becomes a class, a copy or a row in
silence. Each test is named after what broke."""
import gzip
import json
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from sftbook.core import DataError, SftbookError
from sftbook.labels import label_key
from sftbook.rows import load_rows
from sftbook.records import open_records
from sftbook.preprocessing.copies import duplicate_clusters, text_key
from sftbook.preprocessing.rows import audit, check_leakage, deduplicate, split_notes, split_rows

TEXTS = [f"text number {i} of the file" for i in range(60)]


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def jsonl(path, rows):
    return write(path, "\n".join(map(json.dumps, rows)))


def rows_of(texts, labels=None, names=("a", "b", "c")):
    if labels is None:
        return Dataset.from_dict({"text": texts})
    features = Features(text=Value("string"), label=ClassLabel(names=list(names)))
    return Dataset.from_dict({"text": texts, "label": labels}, features=features)


def labelled(texts, labels):
    "Rows for a file of JSON: the labels take turns."
    return [{"text": text, "label": labels[i % len(labels)]} for i, text in enumerate(texts)]


LABELS = {
    "NaN is no class": ([float("nan"), "a", "b"], "no value"),
    "None is no class": ([None, "a", "b"], "the label is empty"),
    "a list is no class": ([["a", "b"], "a", "b"], "several labels a text are another task"),
    "an object is no class": ([{"name": "a"}, "a", "b"], "take the name out of the object"),
    "an invisible name is no class": (["\u200b", "a", "b"], "the label is empty"),
    "half a character is no name": (["\ud83d", "a", "b"], "is half of one"),
    "0 and 0.0 are one class": (["0", "0.0", "1"], "--merge-labels"),
    "True and TRUE are one class": (["True", "TRUE", "False"], "--merge-labels"),
    "1 and True of JSON are one class": ([1, True, 0], "--merge-labels"),
    "letters of full width are the same letters": (["Ａ", "A", "b"], "--merge-labels"),
    "a space that cannot be broken is a space": (
        ["late\u00a0parcel", "late parcel", "b"], "--merge-labels"),
    "a zero-width mark makes no class": (["a\u200b", "a", "b"], "--merge-labels"),
    "scores are no classes": ([0.5, 1.5, 2.25], "scores, not classes"),
    "a number for every row is no class": (list(range(60)), "this looks like a row number"),
}


@pytest.mark.parametrize("what", LABELS)
def test_a_label_is_a_label(what, tmp_path):
    labels, expected = LABELS[what]
    file = jsonl(tmp_path / "d.jsonl", labelled(TEXTS, labels))
    with pytest.raises(DataError, match=expected):
        load_rows(file)


def test_nan_of_parquet_is_no_class(tmp_path):
    labels = pa.array([float("nan"), 1.0, 2.0] * 20)
    pq.write_table(pa.table({"text": TEXTS, "label": labels}), tmp_path / "d.parquet")
    with pytest.raises(DataError, match="no value"):
        load_rows(tmp_path / "d.parquet")


def test_names_that_only_look_odd_stay_classes(tmp_path):
    odd = ["007", "7", "NA", "None"]
    file = jsonl(tmp_path / "d.jsonl", labelled(TEXTS, odd))
    assert load_rows(file).features["label"].names == odd


def test_labels_of_a_run_are_matched_and_said(tmp_path):
    known = ["1", "late", "rude"]
    file = jsonl(tmp_path / "d.jsonl", labelled("abc", ["LATE", 1.0, None]))
    rows = load_rows(file, labels=known)
    assert rows["label"][:] == [1, 0]
    assert "'LATE' was read as 'late'" in rows.info.description
    assert "1 row without a label was left out" in rows.info.description
    other = jsonl(tmp_path / "e.jsonl", labelled("a", ["noise"]))
    with pytest.raises(DataError, match="'noise'.*\n.*'rude'"):
        load_rows(other, labels=known)


def test_one_column_cannot_be_text_and_label(tmp_path):
    with pytest.raises(DataError, match="cannot both be column 'label'"):
        load_rows(write(tmp_path / "d.csv", "text,label\na,b\n"), text="label")


BODY = "".join(f"{t}{{d}}{'ab'[i % 2]}{{e}}" for i, t in enumerate(TEXTS))
SPREADSHEETS = {
    "semicolons.csv": BODY.format(d=";", e="\r\n").join(["\ufefftext;label\r\n", ""]),
    "sep_line.csv": "sep=,\r\ntext,label\r\n" + BODY.format(d=",", e="\r\n"),
    "empty_columns.csv": "text,label,,\r\n" + BODY.format(d=",", e=",,\r\n"),
    "empty_rows.csv": "text,label\r\n" + BODY.format(d=",", e="\r\n") + ",\r\n" * 9,
    "unicode_text.txt": ("text\tlabel\r\n" + BODY.format(d="\t", e="\r\n")).encode("utf-16"),
    "old_mac.csv": "text,label\r" + BODY.format(d=",", e="\r"),
    "packed.csv.gz": gzip.compress(("text,label\n" + BODY.format(d=",", e="\n")).encode()),
}


@pytest.mark.parametrize("name", SPREADSHEETS)
def test_what_spreadsheets_write_is_read(name, tmp_path):
    rows = load_rows(write(tmp_path / name, SPREADSHEETS[name]))
    assert rows["text"][:] == TEXTS and rows.features["label"].names == ["a", "b"]


def test_a_quotation_mark_swallows_no_rows(tmp_path):
    lines = [f"{t}\ta" for t in TEXTS]
    lines[20], lines[44] = '"never again\tb', 'as wide as 12"\tb'
    rows = load_rows(write(tmp_path / "d.tsv", "text\tlabel\n" + "\n".join(lines)))
    assert len(rows) == 60 and rows["text"][20] == '"never again'
    lines = [f"{t},a" for t in TEXTS]
    lines[20] = '"never again,b'
    with pytest.raises(DataError, match="line 22.*\n.*opens there"):
        load_rows(write(tmp_path / "d.csv", "text,label\n" + "\n".join(lines)))
    lines[44] = '12" wide,b'
    with pytest.raises(DataError, match="line 22"):
        load_rows(write(tmp_path / "d.csv", "text,label\n" + "\n".join(lines)))


def test_a_field_over_several_lines_is_said(tmp_path):
    records = open_records(write(tmp_path / "d.csv", 'text,label\n"a\nb",x\n'))
    assert records.notes == ["1 field runs over several lines, at line 2 (2 lines)"]


TWO = labelled("ab", ["x", "y"])
JSON = {
    "wrapped.json": json.dumps({"data": TWO}, indent=2),
    "columns.json": json.dumps({"text": {"0": "a", "1": "b"}, "label": {"0": "x", "1": "y"}}),
    "pretty.jsonl": "\n".join(json.dumps(row, indent=2) for row in TWO),
    "bom.jsonl": '\ufeff{"text": "a", "label": "x"}\r\n{"text": "b", "label": "y"}\r\n',
}


@pytest.mark.parametrize("name", JSON)
def test_shapes_of_json_are_read(name, tmp_path):
    assert load_rows(write(tmp_path / name, JSON[name]))["text"][:] == ["a", "b"]


@pytest.mark.parametrize("content, expected", [
    ("[" * 200_000, "nested too deeply"),
    ('{"text": "a", "label": ' + "1" * 5000 + "}", "not readable"),
    ("{'text': 'a'}", "Python"),
    ('{"text": "a", "label": "x"}\n{"text": "b", "la', "line 2"),
    ('{"text": "a \\ud83d", "label": "x"}', "half of one"),
    ("", "there are no rows"),
])
def test_broken_json_is_one_message(content, expected, tmp_path):
    with pytest.raises(DataError, match=expected):
        load_rows(write(tmp_path / "d.jsonl", content))


def test_a_cut_file_of_utf_16_is_one_message(tmp_path):
    with pytest.raises(DataError, match="UTF-16"):
        load_rows(write(tmp_path / "d.csv", "\ufefftext,label\n".encode("utf-16-le")[:-1]))


def test_a_misspelt_name_asks_nobody_on_the_network(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "feedback.csv", "text,label\n")
    names = {"feedback": "feedback.csv", "bbc-newz": "bbc-news", "feedbak.csv": "feedback.csv"}
    for name, meant in names.items():
        with pytest.raises(SftbookError, match=f"did you mean '{meant}'"):
            load_rows(name)


@pytest.mark.parametrize("a, b", [
    ("works :)", "works :("), ("5 %", "5 €"), ("C++", "C#"), ("👍", "👎"),
    ("-5 degrees", "5 degrees"), ("क", "कि")])
def test_signs_and_symbols_are_no_punctuation(a, b):
    assert text_key(a) != text_key(b)
    assert len(deduplicate(rows_of([a, b], [0, 1]))[0]) == 2


@given(st.text())
@settings(max_examples=300, deadline=None)
def test_a_key_is_its_own_key(text):
    assert text_key(text_key(text)) == text_key(text)
    assert text_key(f"  {text}\u200b\n") == text_key(text)


@given(st.text(max_size=20))
@settings(max_examples=300, deadline=None)
def test_a_label_key_is_its_own_key(name):
    assert label_key(label_key(name)) == label_key(name)


DISCLAIMER = " ".join(f"legal{i}" for i in range(50))
FORM = " ".join(f"word{i}" for i in range(40))


def mails(n):
    return [" ".join(f"own{i}x{k}" for k in range(8)) + " " + DISCLAIMER for i in range(n)]


def forms(n):
    return [f"Dear name{i} {FORM} order {i} yours" for i in range(n)]


@pytest.mark.parametrize("n", [11, 150, 200, 201, 1000])
def test_boilerplate_makes_no_twins_and_forms_do_not_slip_through(n):
    assert len(set(duplicate_clusters(mails(n)))) == n
    assert len(set(duplicate_clusters(forms(n)))) == 1
    with pytest.raises(DataError, match="near-copy"):
        check_leakage({"train": rows_of(forms(n)[: n // 2]), "test": rows_of(forms(n)[n // 2 :])})


def test_signed_mails_split_in_the_shares_that_were_asked_for():
    texts = [m if i % 2 else m.replace(DISCLAIMER, "") for i, m in enumerate(mails(150))]
    rows = rows_of(texts, [i % 3 for i in range(150)])
    clusters = duplicate_clusters(texts)
    sizes = dict(validation_size=0.0, test_size=0.3)
    parts = split_rows(rows, clusters, **sizes)
    assert len(parts["test"]) == 45
    assert split_notes(rows, clusters, parts, **sizes) == []


def test_a_missed_share_is_said_with_its_cluster():
    rows = rows_of(forms(80) + mails(20))
    clusters = duplicate_clusters(rows["text"])
    sizes = dict(validation_size=0.0, test_size=0.5)
    notes = split_notes(rows, clusters, split_rows(rows, clusters, **sizes), **sizes)
    assert any("50 were asked for" in note for note in notes)
    assert any("80 rows: 'Dear name0" in note for note in notes)


def groups(clusters):
    "The members of each cluster."
    return {frozenset(np.flatnonzero(clusters == c).tolist()) for c in set(clusters.tolist())}


@given(st.permutations(range(12)))
@settings(max_examples=20, deadline=None)
def test_clusters_do_not_depend_on_the_order(order):
    texts = [*forms(4), *mails(4), "a b c", "A, b c!", "d", ""]
    shuffled = duplicate_clusters([texts[i] for i in order])
    found = {frozenset(order[i] for i in members) for members in groups(shuffled)}
    assert groups(duplicate_clusters(texts)) == found


def test_shared_tails_are_found_in_near_linear_time():
    import time

    rng = random.Random(0)
    words = [f"w{i}" for i in range(1500)]
    tails = [" ".join(rng.choices(words, k=80)) for _ in range(60)]
    texts = [" ".join(rng.choices(words, k=30)) + " " + tails[i % 60] for i in range(12_000)]
    start = time.process_time()
    assert len(set(duplicate_clusters(texts))) == 12_000
    assert time.process_time() - start < 20


def test_an_audit_of_600_classes_stays_readable():
    names = [f"class {i}" for i in range(600)]
    rows = rows_of([f"text {i}" for i in range(1200)], [i % 600 for i in range(1200)], names)
    said = str(audit(rows))
    assert "and 590 more" in said and max(map(len, said.splitlines())) <= 100
