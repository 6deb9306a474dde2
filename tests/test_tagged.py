"Named entities of other people's files: read as they were meant, or one message with the lines. Each test is named after what broke."
import gzip
import json

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st

import sftbook.tagged
from sftbook.core import CorpusError, DataError
from sftbook.spans import split_words, tag_spans, word_spans
from sftbook.tagged import load_tagged

KNOWN = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


def write(path, content):
    data = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def jsonl(path, *rows):
    return write(path, "\n".join(map(json.dumps, rows)))


def tags_of(rows):
    names = rows.features["ner_tags"].feature.names
    return [" ".join(names[i] for i in row) for row in rows["ner_tags"]]


def conll(rows, separator=" ", end="\n"):
    return end.join(end.join(f"{token}{separator}{tag}" for token, tag in row) + end for row in rows)


# --- a token a line

RIO = "Rio de Janeiro greets Mira and Oslo Bergen".split()
IOB2 = "B-LOC I-LOC I-LOC O B-PER O B-LOC B-LOC"
SCHEMES = {
    "IOB1": "I-LOC I-LOC I-LOC O I-PER O I-LOC B-LOC",
    "IOB2": IOB2,
    "BIOES": "B-LOC I-LOC E-LOC O S-PER O S-LOC S-LOC",
    "BMES": "B-LOC M-LOC E-LOC O S-PER O S-LOC S-LOC",
    "BILOU": "B-LOC I-LOC L-LOC O U-PER O U-LOC U-LOC",
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_each_scheme_holds_the_same_entities_and_is_named(scheme, tmp_path):
    rows = load_tagged(write(tmp_path / "a.conll", conll([zip(RIO, SCHEMES[scheme].split())])))
    assert tags_of(rows) == [IOB2] and rows["tokens"][0] == RIO
    assert f"the tags are {scheme}" in rows.info.description and "no beginning" not in rows.info.description


def test_types_without_a_prefix_are_entities_and_neighbours_are_one(tmp_path):
    rows = load_tagged(write(tmp_path / "a.conll", conll([zip(RIO, "LOC LOC LOC O PER O LOC LOC".split())])))
    assert tags_of(rows) == ["B-LOC I-LOC I-LOC O B-PER O B-LOC I-LOC"]
    assert "neighbours of one type are one entity" in rows.info.description


@pytest.mark.parametrize("ending", ["conll", "iob", "iob2", "bio", "bioes", "txt", "tsv", "CONLL", "conll.gz", "tsv.gz"])
def test_each_ending_is_read_packed_or_not(ending, tmp_path):
    rows = load_tagged(write(tmp_path / f"a.{ending}", "Mira\tB-PER\nwaits\tO\n\nOslo\tB-LOC\n"))
    assert tags_of(rows) == ["B-PER O", "B-LOC"] and rows["row"][:] == [1, 4] and rows["file"][0] == f"a.{ending}"
    assert rows.features["ner_tags"].feature.names == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]


FORMS = {
    "carriage returns": b"Mira B-PER\r\nwaits O\r\n\r\nOslo B-LOC\r\n",
    "a byte order mark": "\ufeffMira B-PER\nwaits O\n\nOslo B-LOC".encode(),
    "UTF-16": "Mira B-PER\nwaits O\n\nOslo B-LOC".encode("utf-16"),
    "white space in the empty line": b"Mira B-PER\nwaits O\n \t\nOslo B-LOC\n\n\n",
    "columns between": b"Mira NNP I-NP B-PER\nwaits VBZ I-VP O\n\nOslo NNP I-NP B-LOC\n",
    "several spaces": b"Mira   B-PER \nwaits   O\n\nOslo    B-LOC\n",
    "documents": b"-DOCSTART- O\n\nMira B-PER\nwaits O\n\n-DOCSTART- O\nOslo B-LOC\n",
    "comments": b"# id = 1\n# text = Mira waits\nMira\tB-PER\nwaits\tO\n\n# id = 2\nOslo\tB-LOC\n",
    "a header": b"Token\tNER\nMira\tB-PER\nwaits\tO\n\nOslo\tB-LOC\n",
}


@pytest.mark.parametrize("what", FORMS)
def test_columns_are_read_as_programs_write_them(what, tmp_path):
    rows = load_tagged(write(tmp_path / "a.conll", FORMS[what]))
    assert tags_of(rows) == ["B-PER O", "B-LOC"] and rows["tokens"][:] == [["Mira", "waits"], ["Oslo"]]
    said = {"documents": "-DOCSTART- skipped: 2", "comments": "comment lines skipped: 3", "a header": "line 1, a header"}
    assert said.get(what, "") in rows.info.description


def test_the_token_of_a_number_sign_is_no_comment(tmp_path):
    for separator in " \t":
        rows = load_tagged(write(tmp_path / "a.conll", conll([[("#", "O"), ("Oslo", "B-LOC")], [("#", "B-LOC")]], separator)))
        assert rows["tokens"][:] == [["#", "Oslo"], ["#"]]
    assert load_tagged(write(tmp_path / "b.conll", "# B-LOC\n"))["tokens"][:] == [["#"]]  # hypothesis has found it


def test_a_token_may_hold_a_space_where_tabs_separate(tmp_path):
    rows = load_tagged(write(tmp_path / "a.tsv", "New York\tB-LOC\nrains\tO\n"))
    assert rows["tokens"][0] == ["New York", "rains"]


BROKEN = {
    "another number of columns": ("Mira B-PER\nNew York B-LOC\n", r"line 2: 3 columns where most lines have 2"),
    "another number in the first line": ("New York B-LOC\nwaits O\nhere O\n", "line 1: 3 columns where most lines have 2"),
    "no tag": ("Mira B-PER\nwaits\nhere O\n", "line 2: 'waits' has no tag"),
    "an empty tag": ("Mira\tB-PER\nwaits\t\nhere\tO\n", "line 2: 'waits' has no tag"),
    "no tag anywhere": ("Mira\nwaits\n", "one column"),
    "no token": ("Mira\tB-PER\n\u200b\tO\n", "line 2: the token is empty or cannot be seen"),
    "a tag of no scheme": ("Mira B-PER\nwaits VERB\n", "line 2: 'VERB', of 'waits', is no tag"),
    "a type that is missing": ("Mira B-PER\nwaits B-\n", "line 2: 'B-'"),
    "parts of speech": ("Mira NOUN\nwaits VERB\n", "parts of speech"),
    "positions without types": ("Mira B\nLund I\nwaits O\n", "'B' is a tag of no scheme"),
    "tags with the type first": ("Mira PER-B\nwaits O\n", "'PER-B' is a tag of no scheme"),
    "small letters": ("Mira b-per\nwaits O\n", "'b-per' is a tag of no scheme"),
    "a tag for every word": ("".join(f"w{i} T{i}\n" for i in range(51)) + "w O\n", "51 different tags"),
    "inside tags only of an end": ("Mira E-PER\nwaits O\n", "no tag begins an entity"),
    "tokens that are counted": ("1\tMira\tB-PER\n2\twaits\tO\n", "first column counts"),
    "nothing": ("", "no sentences"),
    "white space": ("\n \n\n", "no sentences"),
    "documents without words": ("-DOCSTART- O\n\n# nothing\n", "no sentences"),
    "no entity": ("Mira O\n\nwaits O\n", "none of the 2 sentences has an entity"),
    "no empty lines": ("Mira B-PER\n" * 30, "line 1: a sentence of 30 tokens, more than 20"),
    "two spellings of a type": ("Mira B-PER\nLund B-Per\n", "'PER', 'Per'"),
    "another encoding": ("Zoë B-PER\n".encode("latin-1"), "not UTF-8"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_columns_are_refused_with_their_line(what, tmp_path):
    content, said = BROKEN[what]
    with pytest.raises(DataError, match=said) as e:
        load_tagged(write(tmp_path / "a.conll", content), max_tokens=20)
    assert "a.conll" in str(e.value) and e.value.remedy


def test_all_broken_lines_are_listed_at_once(tmp_path):
    with pytest.raises(DataError) as e:
        load_tagged(write(tmp_path / "a.conll", "Mira B-PER\nNew York B-LOC\nwaits\n\nhere X\nnow O\n"))
    assert [f"line {n}:" in str(e.value) for n in range(1, 6)] == [False, True, True, False, True]


def test_a_packed_file_that_was_cut_is_damaged(tmp_path):
    path = write(tmp_path / "a.conll.gz", "Mira B-PER\n" * 1000)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match="unpacked"):
        load_tagged(path)


def test_entities_without_a_beginning_or_an_end_are_counted(tmp_path):
    rows = load_tagged(write(tmp_path / "a.conll", "Mira B-PER\nx O\nLund I-PER\n\nOslo I-LOC\n"))
    assert tags_of(rows) == ["B-PER O B-PER", "B-LOC"]
    assert "2 entities had no beginning: they begin where they were found (first: line 3)" in rows.info.description
    rows = load_tagged(write(tmp_path / "b.conll", "Mira S-PER\nx O\nLund B-PER\n\nOslo S-LOC\n"))
    assert "no beginning" not in rows.info.description
    for lost in ("I", "E", "M", "L"):
        rows = load_tagged(write(tmp_path / "c.conll", f"Mira B-PER\nx O\nLund {lost}-PER\n"))
        assert "1 entity had no beginning: it begins where it was found (line 3)" in rows.info.description
    rows = load_tagged(tmp_path / "b.conll")
    assert "1 entity had no end: it ends where it was found (line 3)" in rows.info.description


def test_mixed_schemes_have_one_reading_and_are_named(tmp_path):
    mixed = "Rio B-LOC\nJaneiro E-LOC\n\nRio B-LOC\nJaneiro L-LOC\nMira U-PER\n\nRio I-LOC\nJaneiro I-LOC\n"
    rows = load_tagged(write(tmp_path / "a.conll", mixed))
    assert tags_of(rows) == ["B-LOC I-LOC", "B-LOC I-LOC B-PER", "B-LOC I-LOC"]
    assert "the tags mix schemes (B, E, I, L, U)" in rows.info.description and "1 entity had no beginning" in rows.info.description


# --- records with tokens


@pytest.mark.parametrize("column", ["ner_tags", "tags", "labels"])
@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "json"])
def test_tokens_with_tags_are_rows(column, ending, tmp_path):
    records = [{"tokens": ["Mira", "waits"], column: ["S-PER", "O"]}, {"tokens": ["Oslo"], column: ["S-LOC"]}]
    text = json.dumps(records) if ending == "json" else "\n".join(map(json.dumps, records))
    rows = load_tagged(write(tmp_path / f"a.{ending}", text))
    assert tags_of(rows) == ["B-PER O", "B-LOC"] and rows["row"][:] == [1, 2]
    assert "BIOES" in rows.info.description


RECORDS = {
    "different lengths": ({"tokens": ["Mira", "waits"], "tags": ["B-PER"]}, "2 tokens and 1 tag"),
    "numbers without names": ({"tokens": ["Mira"], "tags": [1]}, "the number 1"),
    "no tokens": ({"tokens": [], "tags": []}, "no list of tokens"),
    "a text for tokens": ({"tokens": "Mira", "tags": ["B-PER"]}, "no list of tokens"),
    "a text for tags": ({"tokens": ["Mira"], "tags": "B-PER"}, "no list of tags"),
    "an empty token": ({"tokens": ["Mira", " "], "tags": ["B-PER", "O"]}, "token 2 is empty"),
    "half a character": ({"tokens": ["Mira", "\ud83d"], "tags": ["B-PER", "O"]}, "token 2 is broken"),
    "half a tag": ({"tokens": ["Mira"], "tags": ["B-\ud83d"]}, "tag 1 is broken"),
    "a missing tag": ({"tokens": ["Mira", "x"], "tags": ["B-PER", None]}, "tag 2 is no text"),
    "a truth for a tag": ({"tokens": ["Mira"], "tags": [True]}, "tag 1 is no text"),
    "a tag of no scheme": ({"tokens": ["Mira"], "tags": ["X-PER"]}, "'X-PER', of 'Mira', is no tag"),
}


@pytest.mark.parametrize("what", RECORDS)
def test_broken_records_of_tokens_are_refused_with_their_line(what, tmp_path):
    record, said = RECORDS[what]
    with pytest.raises(DataError, match=f"line 2: .*{said}") as e:
        load_tagged(jsonl(tmp_path / "a.jsonl", {"tokens": ["Oslo"], "tags": ["B-LOC"]}, record))
    assert e.value.remedy
    str(e.value).encode()  # can be printed


def tagged_numbers():
    features = Features(tokens=List(Value("string")), ner_tags=List(ClassLabel(names=["O", "I-PER"])))
    return Dataset.from_dict(dict(tokens=[["Mira", "Lund", "waits"]], ner_tags=[[1, 1, 0]]), features=features)


def test_numbers_of_a_parquet_file_of_datasets_have_names(tmp_path):
    tagged_numbers().to_parquet(tmp_path / "a.parquet")
    rows = load_tagged(tmp_path / "a.parquet")
    assert tags_of(rows) == ["B-PER I-PER O"] and "IOB1" in rows.info.description


def test_numbers_of_another_parquet_file_have_none(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"tokens": [["Mira"]], "ner_tags": [[1]]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="nothing says what it means"):
        load_tagged(tmp_path / "a.parquet")


# --- texts with spans

TEXT = "Mira waits in Rio de Janeiro."
SPANS = {
    "spaCy": {"text": TEXT, "entities": [[0, 4, "PER"], [14, 28, "LOC"]]},
    "doccano": {"id": 7, "text": TEXT, "label": [[14, 28, "LOC"], [0, 4, "PER"]]},
    "doccano with relations": {"text": TEXT, "entities": [{"id": 1, "label": "PER", "start_offset": 0, "end_offset": 4}, {"id": 2, "label": "LOC", "start_offset": 14, "end_offset": 28}]},
    "Prodigy": {"text": TEXT, "tokens": [{"text": "Mira", "id": 0}], "answer": "accept", "spans": [{"start": 0, "end": 4, "token_start": 0, "label": "PER"}, {"start": 14, "end": 28, "label": "LOC"}]},
    "a pipeline": {"text": TEXT, "entities": [{"entity_group": "PER", "score": 0.9, "word": "mira", "start": 0, "end": 4}, {"entity_group": "LOC", "start": 14, "end": 28}]},
    "Label Studio, small": {"text": TEXT, "label": [{"start": 0, "end": 4, "text": "Mira", "labels": ["PER"]}, {"start": 14, "end": 28, "text": "Rio de Janeiro", "labels": ["LOC"]}]},
    "Label Studio": {"id": 1, "data": {"text": TEXT}, "annotations": [{"was_cancelled": False, "result": [
        {"type": "labels", "value": {"start": 0, "end": 4, "text": "Mira", "labels": ["PER"]}},
        {"type": "choices", "value": {"choices": ["good"]}}, {"type": "relation"},
        {"type": "labels", "value": {"start": 14, "end": 28, "text": "Rio de Janeiro", "labels": ["LOC"]}}]}]},
}


@pytest.mark.parametrize("tool", SPANS)
def test_spans_are_read_as_each_tool_writes_them(tool, tmp_path):
    rows = load_tagged(jsonl(tmp_path / "a.jsonl", SPANS[tool]))
    assert rows["tokens"][0] == ["Mira", "waits", "in", "Rio", "de", "Janeiro", "."]
    assert tags_of(rows) == ["B-PER O O B-LOC I-LOC I-LOC O"]
    same = load_tagged(write(tmp_path / "a.json", json.dumps([SPANS[tool]] * 2)))
    assert tags_of(same) == tags_of(rows) * 2


def test_a_span_inside_a_word_cuts_it():
    assert tag_spans("Oslobound", [(0, 4, "LOC")]) == (["Oslo", "bound"], ["B-LOC", "O"])
    assert tag_spans("preOslopost", [(3, 7, "LOC")]) == (["pre", "Oslo", "post"], ["O", "B-LOC", "O"])


def test_spans_inside_words_are_counted_for_they_may_be_shifted(tmp_path):
    shifted = {"text": "Mira waits in Oslo .", "spans": [[1, 5, "PER"], [15, 18, "LOC"]]}
    assert "inside a word: 2" in load_tagged(jsonl(tmp_path / "a.jsonl", shifted)).info.description
    assert "inside a word" not in load_tagged(jsonl(tmp_path / "b.jsonl", SPANS["spaCy"])).info.description


def test_keys_without_a_value_are_no_keys(tmp_path):
    row = {"text": TEXT, "spans": [{"start": 0, "end": 4, "label": None, "type": "PER", "text": None}]}
    assert tags_of(load_tagged(jsonl(tmp_path / "a.jsonl", row)))[0].startswith("B-PER O")


def test_places_are_characters_also_behind_an_emoji():
    assert tag_spans("👍🏽 她在Oslo", [(5, 9, "LOC")])[1][-1] == "B-LOC"
    assert word_spans("👍 Oslo") == [(0, 1), (2, 6)] and split_words("a-b") == ["a", "-", "b"]


def test_spaces_at_the_ends_of_spans_are_taken_off_and_counted(tmp_path):
    rows = load_tagged(jsonl(tmp_path / "a.jsonl", {"text": "in Oslo now", "spans": [[2, 8, "LOC"]]}))
    assert tags_of(rows) == ["O B-LOC O"] and "spans that lost spaces at their ends: 1" in rows.info.description


def test_a_text_without_entities_is_a_row_and_one_without_an_answer_is_none(tmp_path):
    kept = [{"text": "in Oslo", "spans": [[3, 7, "LOC"]]}, {"text": "nobody", "spans": []}]
    rows = load_tagged(jsonl(tmp_path / "a.jsonl", *kept, {"text": "no", "spans": [], "answer": "reject"}))
    assert tags_of(rows) == ["O B-LOC", "O"] and "left out because nobody" in rows.info.description
    tasks = [SPANS["Label Studio"], {"data": {"text": "x"}, "annotations": []}, {"data": {"text": "x"}, "annotations": [{"was_cancelled": True, "result": []}]}]
    assert len(load_tagged(write(tmp_path / "b.json", json.dumps(tasks)))) == 1


BROKEN_SPANS = {
    "an empty span": ([[4, 4, "PER"]], "is empty"),
    "a span of a space": ([[4, 5, "PER"]], "is empty"),
    "out of the text": ([[0, 40, "PER"]], "lies outside of the text, which has 29 characters"),
    "before the text": ([[-4, 4, "PER"]], "lies outside"),
    "the wrong way round": ([[4, 0, "PER"]], "lies outside"),
    "overlapping": ([[0, 10, "PER"], [5, 13, "ORG"]], r"'Mira waits' \(0 to 10, PER\) and 'waits in' \(5 to 13, ORG\)"),
    "nested": ([[14, 28, "LOC"], [0, 4, "PER"], [14, 17, "LOC"]], r"'Rio' \(14 to 17, LOC\) and 'Rio de Janeiro'"),
    "no type": ([[0, 4]], "no span with a start, an end and one type"),
    "an empty type": ([[0, 4, " "]], "no span with a start"),
    "a number for a type": ([[0, 4, 1]], "no span with a start"),
    "two types": ([{"start": 0, "end": 4, "labels": ["PER", "ORG"]}], "no span with a start"),
    "a text for a place": ([{"start": "0", "end": "4", "label": "PER"}], "no span with a start"),
    "a tag for a type": ([[0, 4, "B-PER"]], "is a tag, not a type"),
    "no span at all": (["Mira"], "no span with a start"),
    "half a type": ([[0, 4, "\ud83d"]], "half of one"),
    "other words": ([{"start": 0, "end": 4, "label": "PER", "text": "waits"}], "holds 'Mira', the file says 'waits'"),
    "no list": (None, "no list of spans"),
    "a class": ("sports", "no list of spans"),
}


@pytest.mark.parametrize("what", BROKEN_SPANS)
def test_broken_spans_are_refused_with_their_line(what, tmp_path):
    spans, said = BROKEN_SPANS[what]
    with pytest.raises(DataError, match=f"line 2: .*{said}") as e:
        load_tagged(jsonl(tmp_path / "a.jsonl", {"text": TEXT, "entities": [[0, 4, "PER"]]}, {"text": TEXT, "entities": spans}))
    str(e.value).encode()


def test_places_in_utf_16_units_or_bytes_are_said(tmp_path):
    for text, start, said in (("👍 Oslo", 3, "UTF-16 units"), ("é Oslo", 3, "bytes")):
        row = {"text": text, "spans": [{"start": start, "end": start + 4, "label": "LOC", "text": "Oslo"}]}
        with pytest.raises(DataError, match=said):
            load_tagged(jsonl(tmp_path / "a.jsonl", row))


def test_two_answers_to_one_text_are_refused(tmp_path):
    twice = {**SPANS["Label Studio"], "annotations": SPANS["Label Studio"]["annotations"] * 2}
    for task, said in ((twice, "2 annotations"), ({"data": "Mira", "annotations": []}, "no task of Label Studio"), ({"data": {"a": "x", "b": "y"}, "annotations": []}, "no task of Label Studio"), ({"data": {"text": ""}, "annotations": []}, "the text is empty")):
        with pytest.raises(DataError, match=said):
            load_tagged(jsonl(tmp_path / "a.jsonl", SPANS["Label Studio"], task))


def test_columns_without_entities_are_named(tmp_path):
    with pytest.raises(DataError, match="there are: 'sentence', 'entities'"):
        load_tagged(jsonl(tmp_path / "a.jsonl", {"sentence": "x", "entities": []}))


# --- runs, corpora, names


def test_a_file_for_a_run_has_the_types_and_the_ids_of_the_run(tmp_path):
    path = write(tmp_path / "a.conll", "Mira B-PER\nwaits O\n")
    assert load_tagged(path, labels=KNOWN)["ner_tags"][0] == [1, 0]
    assert load_tagged(path, labels=KNOWN).features["ner_tags"].feature.names == KNOWN
    with pytest.raises(DataError, match="did you mean 'PER' for 'Pers'.*it knows: PER, LOC") as e:
        load_tagged(write(tmp_path / "b.conll", "Mira B-PER\n\nLund B-Pers\n"), labels=KNOWN)
    assert "b.conll, first at line 3" in str(e.value)


def test_a_tagger_takes_the_rows_as_they_are(tmp_path):
    from sftbook.tasks.token_classification import TokenClassification

    rows = load_tagged(write(tmp_path / "a.conll", "Mira I-PER\nLund I-PER\nwaits O\n"))
    assert TokenClassification.from_rows(rows).labels == ["O", "B-PER", "I-PER"]


def test_a_registered_corpus_and_a_hub_data_set_become_the_same_rows(monkeypatch, tmp_path):
    data = tagged_numbers().add_column("part", ["train"])
    monkeypatch.setattr(sftbook.tagged, "load_corpus", lambda name: data)
    monkeypatch.setattr(sftbook.tagged, "_load_from_hub", lambda name: data)
    for source in ("msra-ner", "someone/sentences"):
        rows = load_tagged(source)
        assert tags_of(rows) == ["B-PER I-PER O"] and rows["part"][0] == "train" and rows["row"][0] == 1


def test_a_name_that_is_nothing_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write(tmp_path / "train.conll", "Mira B-PER\n")
    with pytest.raises(DataError, match="did you mean 'train.conll'"):
        load_tagged(tmp_path / "trian.conll")
    with pytest.raises(CorpusError, match="did you mean 'train.conll'"):
        load_tagged(tmp_path / "train")
    for name in ("a.csv", "a.parquet.gz", "a"):
        with pytest.raises(DataError, match="not read"):
            load_tagged(write(tmp_path / name, "x"))


# --- whatever the form, the entities are the same

WORDS = st.text("abÅß#-.'京か👍", min_size=1, max_size=5)
PARTS = st.tuples(st.sampled_from([None, "PER", "LOC", "E-mail"]), st.lists(WORDS, min_size=1, max_size=4))
SENTENCES = st.lists(st.lists(PARTS, min_size=1, max_size=5), min_size=1, max_size=4).filter(lambda rows: any(kind for row in rows for kind, _ in row))
LETTERS = dict(BIOES="BIES", BMES="BMES", BILOU="BILU", IOB2="BIIB")


def written(row, scheme):
    "Tags of the parts of a sentence, written out in a scheme."
    tags, before = [], None
    for kind, words in row:
        if kind is None:
            letters = ["O"] * len(words)
        elif scheme == "IOB1":
            letters = ["B" if before == kind else "I", *"I" * (len(words) - 1)]
        else:
            first, middle, last, only = LETTERS[scheme]
            letters = [only] if len(words) == 1 else [first, *middle * (len(words) - 2), last]
        tags += [letter if kind is None else f"{letter}-{kind}" for letter in letters]
        before = kind
    return tags


def entities(tokens, tags):
    "Type and characters of each entity of IOB2 tags."
    found = []
    for token, tag in zip(tokens, tags):
        if tag[0] == "B":
            found.append([tag[2:], ""])
        if tag != "O":
            found[-1][1] += token
    return found


def found_entities(rows):
    return [entities(tokens, tags.split()) for tokens, tags in zip(rows["tokens"], tags_of(rows))]


@settings(deadline=None, max_examples=60)
@given(rows=SENTENCES, scheme=st.sampled_from(["IOB1", *LETTERS]), separator=st.sampled_from([" ", "\t", " x ", "\tx\t"]), end=st.sampled_from(["\n", "\r\n"]), ending=st.sampled_from(["conll", "tsv.gz"]))
def test_columns_in_any_scheme_come_back_with_the_same_entities(rows, scheme, separator, end, ending, tmp_path_factory):
    tokens = [[word for _, words in row for word in words] for row in rows]
    lines = conll([zip(words, written(row, scheme)) for words, row in zip(tokens, rows)], separator, end)
    got = load_tagged(write(tmp_path_factory.mktemp("any") / f"a.{ending}", lines))
    assert got["tokens"][:] == tokens
    assert found_entities(got) == [[[kind, "".join(words)] for kind, words in row if kind] for row in rows]


@settings(deadline=None, max_examples=60)
@given(rows=SENTENCES, glue=st.sampled_from(["", " ", "  "]))
def test_spans_come_back_with_the_same_entities(rows, glue, tmp_path_factory):
    records = []
    for row in rows:
        text, spans = "", []
        for kind, words in row:
            start = len(text)
            text += " ".join(words)
            spans += [[start, len(text), kind]] if kind else []
            text += glue
        records.append({"text": text, "spans": spans})
    got = load_tagged(jsonl(tmp_path_factory.mktemp("any") / "a.jsonl", *records))
    assert found_entities(got) == [[[kind, "".join(words)] for kind, words in row if kind] for row in rows]
    assert ["".join(tokens) for tokens in got["tokens"]] == [record["text"].replace(" ", "") for record in records]


JSON = st.recursive(st.none() | st.booleans() | st.integers(-2, 9) | st.floats() | st.sampled_from(["Mira waits", "O", "B-PER", "PER", "\ud83d", ""]),
                    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["start", "end", "label", "labels", "text", "result", "value", "data"]), inner, max_size=4), max_leaves=12)
KEYS = st.sampled_from(["tokens", "ner_tags", "tags", "labels", "text", "spans", "entities", "label", "data", "annotations", "answer"])


def loads_or_says_why(path):
    try:
        rows = load_tagged(path)
    except DataError as e:
        str(e).encode()
    else:
        assert len(rows) and all(len(t) == len(g) > 0 for t, g in zip(rows["tokens"], rows["ner_tags"]))


@settings(deadline=None, max_examples=300)
@given(records=st.lists(st.dictionaries(KEYS, JSON, min_size=2, max_size=5), min_size=1, max_size=3))
def test_any_record_is_read_or_refused_with_a_message(records, tmp_path_factory):
    loads_or_says_why(jsonl(tmp_path_factory.mktemp("any") / "a.jsonl", *records))


@settings(deadline=None, max_examples=200)
@given(content=st.text("ab \t\n\r#-OBIESLMUPX\u3000\u200b\u2028\x0b\x1c👍", max_size=60))
def test_any_lines_are_read_or_refused_with_a_message(content, tmp_path_factory):
    loads_or_says_why(write(tmp_path_factory.mktemp("any") / "a.txt", content))
