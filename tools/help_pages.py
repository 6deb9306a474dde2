"""Make the rows of chapter 01c_help_pages from two Debian packages.

    python tools/help_pages.py                     fetch the packages with apt-get, write the files
    python tools/help_pages.py --archives FOLDER   take the packages from a folder
    python tools/help_pages.py --check             write nothing; say whether the files are the same

It needs apt-get (for the first) and dpkg. The packages are pinned by version and checksum, so the
same bytes come out each time, given the pyarrow of constraints.txt; MANIFEST.json is written last.
"""
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parent))

from shipped_rows import command_line, replace_rows, write_rows  # noqa: E402

from sftbook.core import CorpusError, sha256  # noqa: E402
from sftbook.help_pages import read_help_page  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "sftbook" / "data" / "help_pages"
VERSION = "4:7.4.7-1+deb12u14"
PACKAGES = {  # language: package, its folder, sha256
    "en": ("libreoffice-help-en-us", "en-US",
           "8faa840285734d6cfe1ed25537b48f07e74bd6412e3917bf8e5f8a653f7b3712"),
    "zh": ("libreoffice-help-zh-cn", "zh-CN",
           "db867cdece4c2f9c7eebe65e519c6cf386fdcf49d6e061db3dffec893b3e1dee")}
PAGES = 2560

NOTICE = """\
The file help_pages.parquet holds texts of the help pages of LibreOffice 7.4.7 in English and
Chinese.

Copyright 2000, 2010 Oracle and/or its affiliates.
Copyright 2000, 2010 LibreOffice contributors and/or their affiliates.

The texts are under the Mozilla Public License, version 2.0 (SPDX: MPL-2.0), which stands in the
file LICENSE beside this one. Some of the pages incorporate work that the Apache Software Foundation
has licensed under the Apache License, version 2.0 (SPDX: Apache-2.0), which stands in the file
LICENSE of this project. Neither gives a right to the name LibreOffice, a trademark.

Source: the packages {packages},
version {version}, made from the Debian source package libreoffice, which holds the
pages in the form in which they are written (in helpcontent2).

What was changed: the text of headings and paragraphs was taken out of the pages, with their ids and
the entries of the index; of passages that differ between systems or programs one was chosen.
Paragraphs without a text were left out. This was done by tools/help_pages.py of this project.

sha256 of the packages:
{checksums}
"""


def run(*command, folder=None):
    "Run a program; what it says is part of the error when it fails."
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    except FileNotFoundError as e:
        raise CorpusError(f"there is no program {command[0]!r}", remedy="install it") from e
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise CorpusError(f"{' '.join(command[:2])} failed: {said}",
                          remedy=f"see whether apt-cache policy knows version {VERSION}")


def find_archive(folder, package, checksum):
    "The pinned archive of a package in a folder."
    found = sorted(folder.glob(f"{package}_*.deb"))
    if len(found) != 1:
        raise CorpusError(f"there are {len(found)} archives of {package}, not 1", where=str(folder),
                          remedy=f"put the archive of version {VERSION} there, and no other")
    if (has := sha256(found[0])) != checksum:
        raise CorpusError(f"the archive has the checksum {has}, not {checksum}",
                          where=found[0].name,
                          remedy=f"it is damaged or another version; {VERSION} is wanted")
    return found[0]


def extract(folder, archives):
    "{language: folder of its pages}."
    found = {}
    for language, (package, name, checksum) in PACKAGES.items():
        if not archives:
            run("apt-get", "download", f"{package}={VERSION}", folder=folder)
        archive = find_archive(archives or folder, package, checksum)
        run("dpkg", "-x", str(archive), str(folder / language))
        found[language] = folder / language / "usr/share/libreoffice/help" / name / "text"
    return found


def list_pages(folders):
    "The pages, by name; both languages must have the same."
    names = {language: {p.relative_to(folder).as_posix() for p in folder.rglob("*.html")}
             for language, folder in folders.items()}
    alone = sorted(names["en"] ^ names["zh"])
    if alone or len(names["en"]) != PAGES:
        what = f"page {alone[0]} is there in one language only" if alone else (
            f"{len(names['en']):,} pages where {PAGES:,} were expected")
        raise CorpusError(what, where="help pages", remedy="unpack the pinned packages again")
    return sorted(names["en"])


def numbered(elements):
    "{(id, how often it was there before): element}."
    seen, found = Counter(), {}
    for element in elements:
        found[element.id, seen[element.id]] = element
        seen[element.id] += 1
    return found


def read_both(page, folders, counts):
    "The rows of a page. Raises `CorpusError` where the languages do not fit."
    html = {k: (f / page).read_text(encoding="utf-8") for k, f in folders.items()}
    try:
        en, zh = (numbered(read_help_page(html[k], page.partition("/")[0])) for k in ("en", "zh"))
    except CorpusError as e:
        raise CorpusError(e.message, where=f"{page}, {e.where}") from e
    if set(en) != set(zh):
        raise CorpusError(f"an id is there in one language only: {sorted(set(en) ^ set(zh))[0][0]}",
                          where=page, remedy="unpack the pinned packages again")
    count(html["en"], list(en), list(zh), counts)
    for key, element in en.items():
        counts["elements without a text"] += not (element.text and zh[key].text)
        if element.text and zh[key].text:
            yield dict(page=page, id=element.id, kind=element.kind, level=element.level,
                       embedded=element.embedded, en=element.text, zh=zh[key].text,
                       terms_en=element.terms, terms_zh=zh[key].terms)


def count(html, en, zh, counts):
    "What cannot be counted any more once the rows are made."
    counts["pages"] += 1
    counts["elements"] += len(en)
    counts["elements whose id begins with par_ or hd_"] += sum(
        name.startswith(("par_", "hd_")) for name, _ in en)
    counts["elements whose id was there before on the page"] += sum(n > 0 for _, n in en)
    counts["pages with another order in Chinese"] += en != zh
    counts["switches in English"] += html.count('class="switchinline"')
    counts["keys that would be glued in English"] += len(
        re.findall(r"Command\s*(?:<[^>]+>\s*)+Ctrl", html))


SCHEMA = pa.schema([("page", pa.string()), ("id", pa.string()), ("kind", pa.string()),
                    ("level", pa.int8()), ("embedded", pa.bool_()), ("en", pa.string()),
                    ("zh", pa.string()), ("terms_en", pa.list_(pa.string())),
                    ("terms_zh", pa.list_(pa.string()))])


def notice():
    "Where the texts are from, under which licence, and what was changed."
    checksums = "\n".join(f"  {checksum}  {name}" for name, _, checksum in PACKAGES.values())
    packages = " and ".join(name for name, _, _ in PACKAGES.values())
    return NOTICE.format(packages=packages, version=VERSION, checksums=checksums)


def write(path, rows, counts):
    "The three files, into the folder of `path`."
    packages = {package: checksum for package, _, checksum in PACKAGES.values()}
    about = dict(version=VERSION, packages=packages, counts=dict(counts))
    write_rows(path, rows, SCHEMA, notice(), about)


def make(archives=None, check=False):
    "All of it; the names of the files that have changed."
    def build(home, path):
        folders, counts = extract(home, archives), Counter()
        rows = [row for page in list_pages(folders) for row in read_both(page, folders, counts)]
        write(path, rows, counts)

    return replace_rows(TARGET, build, check)


if __name__ == "__main__":
    sys.exit(command_line(__doc__, "a folder with the two .deb files", make))
