"Files that others have written: whole, or one message. Each test is named after what broke."
import csv
import gzip
import io
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sftbook.tasks.batch_prediction import format_rows
from sftbook.core import DataError
from sftbook.records import open_records

ROWS = [f"text number {i},{'ab'[i % 2]}" for i in range(60)]
MAIL = ("Dear team\nmy parcel is late\nit was sent last week\nI have called twice\n"
        "nobody has answered me\nplease look at it\nmany thanks\nAnna")
ORDER = ("Order list\n2, lamps\n3, chairs\n1, table\n4, plates\n2, knives\n6, spoons\n"
         "thank you")
POEM = "Roses are red,\nViolets are blue,\nSugar is sweet,\nAnd so are you,\nmy dear"
DATA = "Here is my data\n1,2\n3,4\n5,6\nthank you"
SAID = 'He said: "no",\n"never",\n"again"\n'


def opened(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return open_records(path)


def written(rows, **how):
    out = io.StringIO()
    csv.writer(out, lineterminator="\n", **how).writerows(rows)
    return out.getvalue()


@pytest.mark.parametrize("text", [
    MAIL, ORDER, POEM, DATA, "\n\n".join([MAIL] * 3), SAID, MAIL.replace("\n", "\r")])
@pytest.mark.parametrize("header", [
    ["text"], ["text", "label"], ["label", "text"], ["id", "text", "label"]])
def test_a_text_over_several_lines_is_a_text(text, header, tmp_path):
    first = [text if name == "text" else name for name in header]
    rows = [first, ["short"] * len(header), ["even shorter"] * len(header)]
    records = opened(tmp_path / "d.csv", written([header, *rows], quoting=csv.QUOTE_ALL))
    assert [list(r.values()) for _, r in records] == rows
    lines = len(text.splitlines()) + text.endswith("\n")
    assert records.notes == [f"1 field runs over several lines, at line 2 ({lines} lines)"]


def test_long_texts_are_counted_and_the_first_is_placed(tmp_path):
    records = opened(tmp_path / "d.csv", 'text,label\nfine,x\n"a\nb",x\n"c\nd\ne",x\n')
    assert records.notes == ["2 fields run over several lines, the first at line 3 (2 lines)"]


@pytest.mark.parametrize("inside", [2, 3, 30])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("delimiter", [",", ";", "|"])
def test_a_mark_that_swallows_a_few_rows_is_named(inside, turned, delimiter, tmp_path):
    lines = list(ROWS)
    lines[20], lines[21 + inside] = '"never again,a', 'wide as 12",b'
    if turned:
        lines = [",".join(line.split(",")[::-1]) for line in lines]
    content = "\n".join(["label,text" if turned else "text,label", *lines]).replace(",", delimiter)
    said = f"line 22: a quotation mark opens here and swallows {inside} rows"
    with pytest.raises(DataError, match=said):
        opened(tmp_path / "d.csv", content)


def test_the_line_of_a_mark_behind_a_long_field_is_that_of_the_mark(tmp_path):
    content = 'a,text,label\n"x\ny\nz","never again,b\nx,t,b\nx,u,b\nx,wide as 12",b\n'
    with pytest.raises(DataError, match="line 4: a quotation mark opens here and swallows 2 rows"):
        opened(tmp_path / "d.csv", content)


@pytest.mark.parametrize("end", ["", '12" wide\n'])
def test_a_mark_in_a_file_of_one_column_is_named(end, tmp_path):
    with pytest.raises(DataError, match="line 3: not readable as CSV"):
        opened(tmp_path / "d.csv", 'text\nfine\n"never again\nfine\nfine\n' + end)


def test_a_mark_in_a_file_with_tabs_is_a_letter(tmp_path):
    for inside, ends in ((0, ""), (1, ""), (2, "\t\t"), (30, ""), (30, "\t\t")):
        lines = [row.replace(",", "\t") + ends for row in ROWS]
        lines[20], lines[21 + inside] = '"never again\ta', 'wide as 12"\tb'
        records = opened(tmp_path / "d.tsv", "\n".join(["text\tlabel", *lines]))
        assert [r["text"] for _, r in records][20] == '"never again'
    with pytest.raises(DataError, match="line 62: 1 tab-separated field where"):
        opened(tmp_path / "d.tsv", "\n".join(["text\tlabel", *lines, "no label"]))


@pytest.mark.parametrize("name", ["d.tsv", "d.txt", "d.csv"])
def test_a_tab_file_in_which_everything_is_quoted_loses_its_marks(name, tmp_path):
    rows = [["text", "label"], ["a\ttab", "x"], [MAIL, "x"], ['say "no"', "y"], ["fine", "y"]]
    records = opened(tmp_path / name, written(rows, delimiter="\t", quoting=csv.QUOTE_ALL))
    assert [list(r.values()) for _, r in records] == rows[1:] and records.columns == rows[0]
    assert "quotation marks around fields were taken off" in records.notes


def test_numbers_in_a_quoted_tab_file_need_no_marks(tmp_path):
    lines = "".join(f'"text {i}"\t{i}\n' for i in range(20))
    records = opened(tmp_path / "d.tsv", '"text"\t"score"\n' + lines)
    assert records.columns == ["text", "score"]
    assert next(iter(records)) == (2, {"text": "text 0", "score": "0"})


def test_a_fault_in_a_quoted_tab_file_leaves_no_marks_in_the_names(tmp_path):
    fine, bad = '"fine"\t"x"\n', '"a \\"bad\\" one"\t"x"\n'
    with pytest.raises(DataError, match="line 22: not readable as CSV"):
        opened(tmp_path / "d.tsv", '"text"\t"label"\n' + fine * 20 + bad)


pieces = st.sampled_from(["a", "late", '"', '""', "\t", "\n", " ", ",", ", ", "12", "é"])
texts = st.lists(pieces, max_size=8).map("".join).filter(lambda text: text.count("\t") < 3)


@given(st.lists(texts, min_size=1, max_size=6))
@settings(max_examples=300, deadline=None)
def test_answers_with_tabs_and_line_breaks_can_be_read_again(tmp_path_factory, values):
    names = ["id", "text", "prediction", "probability", "problem"]
    answer = {"prediction": "x", "probability": "0.5", "problem": ""}
    rows = [{"id": str(i), "text": text, **answer} for i, text in enumerate(values)]
    for suffix in (".tsv", ".csv"):
        content = format_rows(rows, names, suffix, header=True)
        records = opened(tmp_path_factory.getbasetemp() / f"d{suffix}", content)
        assert [r for _, r in records] == rows


def test_empty_columns_and_rows_are_counted(tmp_path):
    records = opened(tmp_path / "d.csv", "\n,,,\n\ntext,,label,\na,,x,\n,,,\nb,,y,,\n")
    assert [r for _, r in records] == [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
    assert records.notes == ["4 empty rows were skipped", "3 empty columns were left out"]
    assert [line for line, _ in records] == [5, 7]
    records = opened(tmp_path / "d.csv", "\nsep=;\n\ntext;label\na;x\n")
    assert records.notes[-1] == "2 empty rows were skipped"
    assert list(records) == [(5, {"text": "a", "label": "x"})]
    with pytest.raises(DataError, match="the file is empty"):
        opened(tmp_path / "d.csv", "\n\n\n")


def test_the_index_of_pandas_is_a_column(tmp_path):
    lines = "".join(f"{i},{row}\n" for i, row in enumerate(ROWS))
    records = opened(tmp_path / "d.csv", ",text,label\n" + lines)
    assert records.columns == ["column 1", "text", "label"] and records.count == 60
    assert records.notes == ["column 1 has no name; it is called 'column 1'"]
    said = "2 problems.*\n.*line 3: a value in a column without a name"
    with pytest.raises(DataError, match=said):
        opened(tmp_path / "d.csv", ",text,label\n,a,x\n1,b,y\n,c,x\n2,d,x\n")


@pytest.mark.parametrize("header", ["text, label", "text,label", '"text", "label"'])
def test_a_space_before_a_quotation_mark_is_no_letter(header, tmp_path):
    records = opened(tmp_path / "d.csv", header + "\n" + '"late, again", "x"\n"fine", "y"\n' * 9)
    assert {r["label"] for _, r in records} == {"x", "y"} and records.count == 18
    assert records.columns == ["text", "label"]
    assert records.notes == ["the space behind each delimiter was left out"]


def test_a_space_at_the_beginning_of_a_text_stays(tmp_path):
    records = opened(tmp_path / "d.csv", "label,text\nx, a\ny, b\n")
    assert [r["text"] for _, r in records] == [" a", " b"]


def sheet(name):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        z.writestr("[Content_Types].xml", "<Types/>")
        z.writestr(name, "<x/>")
    return out.getvalue()


@pytest.mark.parametrize("content, expected", [
    (gzip.compress(b"text,label\na,x\n", mtime=0), "gzip file.*\n.*call it d.csv.gz"),
    (sheet("xl/workbook.xml"), "Excel workbook.*\n.*CSV UTF-8"),
    (sheet("content.xml"), "OpenDocument"),
    (sheet("data.csv"), "zip archive.*\n.*unpack"),
    (b"PK\x03\x04\xff", "zip archive"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1", "old Excel workbook"),
    (b"PAR1\x15\x04", "Parquet file"),
])
def test_a_file_with_a_wrong_ending_is_called_what_it_is(content, expected, tmp_path):
    with pytest.raises(DataError, match=expected):
        opened(tmp_path / "d.csv", content)
    kind, _, _ = expected.partition(".*\n")  # what to do about it is another thing
    with pytest.raises(DataError, match=kind):
        opened(tmp_path / "d.csv.gz", gzip.compress(content))


def test_endings_and_gz_are_named(tmp_path):
    with pytest.raises(DataError, match=r"\.gz"):
        opened(tmp_path / "d.xlsx", b"PK")
    with pytest.raises(DataError, match="take .gz off its name"):
        opened(tmp_path / "d.csv.gz", "text,label\na,x\n")
