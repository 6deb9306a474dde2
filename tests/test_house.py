"The rules of the house that a program can check."
import ast
import configparser
import filecmp
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
import unicodedata
from collections import defaultdict
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import reach  # noqa: E402

NBS = ROOT / "nbs"
NOTEBOOKS = sorted(p for p in NBS.rglob("[!_]*.ipynb") if ".ipynb_checkpoints" not in p.parts)
CHAPTERS = [p for p in NOTEBOOKS if p.stem != "index"]


def cells(path, kind="code"):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == kind]


def code_lines(source):
    return [line for line in source.splitlines() if line.strip() and not line.startswith("#|")]


def name(path):
    return path.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    "The project in a temporary folder, to export and clean without touching the original."
    folder = tmp_path_factory.mktemp("copy") / "project"
    folder.mkdir()
    unwanted = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for part in ("nbs", "sftbook"):
        shutil.copytree(ROOT / part, folder / part, ignore=unwanted)
    for file in ("settings.ini", "setup.py", "pyproject.toml"):
        shutil.copy(ROOT / file, folder)
    return folder


def run_tool(copy, tool, *arguments):
    command = [str(Path(sys.executable).parent / tool), *arguments]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Failed" not in done.stderr, done.stderr  # nbdev_clean warns and goes on


def differing(copy, paths):
    "Of some files, those that are not in the copy as they are here."
    def is_same(path):
        made = copy / path
        return made.exists() and filecmp.cmp(ROOT / path, made, shallow=False)

    return [p.as_posix() for p in paths if not is_same(p)]


def test_the_package_is_what_the_notebooks_export(copy):
    shutil.rmtree(copy / "sftbook")
    (copy / "sftbook").mkdir()
    shutil.copy(ROOT / "sftbook" / "__init__.py", copy / "sftbook")
    run_tool(copy, "nbdev_export")
    modules = {p.relative_to(base) for base in (ROOT, copy)
               for p in (base / "sftbook").rglob("*.py")}
    other = [m for m in differing(copy, sorted(modules))
             if "__init__" not in m or (ROOT / m).read_text().strip()]
    assert not other, "run nbdev_export"


def test_notebooks_are_clean(copy):
    run_tool(copy, "nbdev_clean")
    assert differing(copy, [p.relative_to(ROOT) for p in NOTEBOOKS]) == [], "run nbdev_clean"


def test_the_readme_is_made_from_the_index():
    command = [sys.executable, str(ROOT / "tools" / "readme.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


TIMED_IMPORT = """
import sys, time
start = time.perf_counter()
import sftbook
print(time.perf_counter() - start, "torch" in sys.modules)
"""


def test_importing_sftbook_is_fast_and_light():
    def measure():
        command = [sys.executable, "-c", TIMED_IMPORT]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds, heavy = done.stdout.split()
        assert heavy == "False"
        return float(seconds)

    assert statistics.median(measure() for _ in range(5)) <= 0.2


def test_the_command_line_answers_quickly():
    def measure():
        start = time.perf_counter()
        command = [sys.executable, "-m", "sftbook.cli", "--help"]
        subprocess.run(command, capture_output=True, check=True)
        return time.perf_counter() - start

    assert min(measure() for _ in range(3)) < 2.0


@pytest.mark.parametrize("path", CHAPTERS, ids=name)
def test_cells_are_short(path):
    lengths = sorted(len(code_lines(c)) for c in cells(path))
    median, most = lengths[len(lengths) // 2], lengths[int(0.9 * (len(lengths) - 1))]
    assert median <= 6 and most <= 18 and lengths[-1] <= 40, lengths[-5:]


@pytest.mark.parametrize("path", CHAPTERS, ids=name)
def test_an_exported_cell_is_followed_by_one_that_shows_or_tests_it(path):
    exported = ["#| export" in c for c in cells(path)]
    bare, n = sum(a and b for a, b in zip(exported, exported[1:] + [True])), sum(exported)
    assert bare <= 0.5 * n, f"{bare} of {n} exported cells have no example right after them"


@pytest.mark.parametrize("path", CHAPTERS, ids=name)
def test_imports_stand_alone(path):
    for cell in cells(path):
        lines = ast.parse(re.sub(r"^[%!].*$", "pass", cell, flags=re.MULTILINE)).body
        kinds = {isinstance(node, (ast.Import, ast.ImportFrom)) for node in lines}
        assert len(kinds) < 2, cell[:300]


@pytest.mark.parametrize("path", CHAPTERS, ids=name)
def test_chapters_begin_and_end_as_they_should(path):
    prose = cells(path, "markdown")
    begins = re.match(r"# \S.*\n\n> \S", prose[0])
    assert begins, "title and one line that says what the chapter is for"
    for section in ("## What to remember", "## Exercises"):
        assert any(section in p for p in prose), section
    assert "#| hide" in cells(path)[-1], "solutions are hidden and tested"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_no_saved_output_is_an_error(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    outputs = [o for c in notebook["cells"] for o in c.get("outputs", [])]
    assert not [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]


def module_order():
    "The modules in the order of the sidebar, the core first, each with its notebook."
    tree = yaml.safe_load((NBS / "sidebar.yml").read_text(encoding="utf-8"))
    found, contents = {}, tree["website"]["sidebar"]["contents"]
    core = [entry for entry in contents if isinstance(entry, dict) and entry["section"] == "Core"]
    for entry in core + [entry for entry in contents if entry not in core]:
        for notebook in entry["contents"] if isinstance(entry, dict) else [entry]:
            code = "\n".join(cells(NBS / notebook))
            if match := re.search(r"^#\| default_exp (\S+)", code, re.M):
                found[f"sftbook.{match[1]}"] = notebook
    return found


def imported_modules(module, modules):
    "The modules of the package that a module imports, wherever it does."
    path = ROOT / (module.replace(".", "/") + ".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for origin, name, _ in reach.package_imports(tree, module):
        within = f"{origin}.{name}"
        yield within if within in modules else origin


def test_modules_import_only_downwards():
    modules = module_order()
    order = list(modules)
    for i, module in enumerate(order):
        used = set(imported_modules(module, modules)) - {"sftbook"}
        assert used <= set(order[:i]), f"{module} imports {sorted(used - set(order[:i]))}"
        if module.split(".")[1] not in ("foundations", "cases", "practice"):
            theory = [m for m in used if m.startswith("sftbook.foundations.")]
            assert not theory, f"{module} imports {theory}; foundations explain, they carry nothing"


def test_every_module_has_its_notebook():
    files = [p.relative_to(ROOT) for p in (ROOT / "sftbook").rglob("*.py")
             if not p.name.startswith("_")]
    modules = {".".join(file.with_suffix("").parts) for file in files}
    assert modules == set(module_order())


# ---- what is not in order yet

def read_pending():
    "{rule: {file: measure}} of tests/pending.txt, which says what it is."
    pending = defaultdict(dict)
    for line in (ROOT / "tests" / "pending.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            rule, file, *measure = line.split()
            pending[rule][file] = int(measure[0]) if measure else None
    return pending


PENDING = read_pending()


@pytest.mark.parametrize("file", sorted({file for files in PENDING.values() for file in files}))
def test_what_is_pending_exists(file):
    assert (ROOT / file).exists(), f"{file} is gone: take it out of tests/pending.txt"


def test_only_rules_that_there_are_have_exceptions():
    assert set(PENDING) <= {"outputs", "ruff", "printed", "statements", "lengths", "module"}


def test_saved_outputs_belong_to_the_code():
    command = [sys.executable, str(ROOT / "tools" / "book.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    stale = {f"nbs/{line.partition(': ')[0]}.ipynb" for line in done.stdout.splitlines()}
    assert not done.stderr and stale == set(PENDING["outputs"]), done.stdout + done.stderr


def judge(rule, path, problems):
    "A file that is not in order fails unless it is pending; a pending one that is in order, too."
    if name(path) in PENDING[rule]:
        line = f"{rule} {name(path)}"
        assert problems, f"in order now: take the line {line!r} out of tests/pending.txt"
    else:
        listed = "\n".join(problems[:40])
        assert not problems, f"{len(problems)} places not in order ({rule}):\n{listed}"


@pytest.fixture(scope="module")
def ruff_found():
    "{notebook: what ruff says by the rules in nbs/ruff.toml}, all notebooks at once."
    ruff = shutil.which("ruff", path=str(Path(sys.executable).parent)) or "ruff"
    command = [ruff, "check", "--no-cache", "--output-format", "json", "nbs"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    found = defaultdict(list)
    for f in json.loads(done.stdout):
        where = f"cell {f['cell']}, line {f['location']['row']}"
        found[Path(f["filename"]).resolve()].append(f"{where}: {f['code']} {f['message']}")
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_code_has_a_hundred_columns_and_one_statement_a_line(path, ruff_found):
    judge("ruff", path, ruff_found[path.resolve()])


def columns(line):
    "How wide a line is; a Chinese character has two columns."
    return sum(1 + (unicodedata.east_asian_width(character) in "WF") for character in line)


def printed_lines(path):
    "(cell, line) of all text that a page shows; tables and pictures are no text."
    for i, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
        source = "".join(cell["source"])
        if re.search(r"^#\|\s*(hide|output:\s*false|include:\s*false)\s*$", source, re.MULTILINE):
            continue
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if {"text/html", "text/markdown", "text/latex", "image/png", "image/svg+xml",
                    "application/vnd.jupyter.widget-view+json"} & set(data):
                continue
            text = "".join(output.get("text", [])) or "".join(data.get("text/plain", []))
            for line in text.splitlines():
                yield i, line


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_printed_lines_have_a_hundred_columns(path):
    wide = [(i, line) for i, line in printed_lines(path) if columns(line) > 100]
    judge("printed", path, [f"cell {i}: {columns(line)} columns: {line[:80]}" for i, line in wide])


COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def statement_problems(tree):
    "What ruff has no rule for, as (line, what)."
    last = tree.body[-1] if tree.body else None
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Tuple):
            calls = [ast.unparse(e.func) for e in node.value.elts if isinstance(e, ast.Call)]
            if calls and (node is not last or any(c.startswith(("test_", "print")) for c in calls)):
                yield node.lineno, "a tuple of calls as a statement"
        if isinstance(node, ast.Assign):
            widths = [len(t.elts) for t in node.targets if isinstance(t, (ast.Tuple, ast.List))]
            if max([len(node.targets), *widths]) > 3:
                yield node.lineno, "an assignment of more than three names"
        if isinstance(node, COMPREHENSIONS):
            if any(isinstance(n, COMPREHENSIONS) for n in ast.walk(node) if n is not node):
                yield node.lineno, "a comprehension inside a comprehension"
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            if node.body[0].lineno == node.lineno:
                yield node.lineno, "a function on one line"


def test_statement_problems_are_found():
    def found(code):
        return [what.split()[-1] for _, what in statement_problems(ast.parse(code))]

    assert found("f(1), g(2)\nx") == found("test_eq(1, 1), test_eq(2, 2)") == ["statement"]
    assert found("len(a), g(2)") == found("a, b, c = 1, 2, 3") == found("[i for i in x if i]") == []
    assert found("a, b, c, d = x") == found("a = b = c = d = 0") == ["names"]
    assert found("[[j for j in i] for i in x]") == ["comprehension"]
    assert found("def f(): return 1") == ["line"] and found("def f():\n    return 1") == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_a_statement_does_one_thing(path):
    found = []
    for i, cell in enumerate(cells(path)):
        tree = ast.parse(re.sub(r"^[%!].*$", "pass", cell, flags=re.MULTILINE))
        found += [f"code cell {i}, line {line}: {what}" for line, what in statement_problems(tree)]
    judge("statements", path, found)


@pytest.mark.parametrize("path", CHAPTERS, ids=name)
def test_cells_are_as_short_as_the_style_says(path):
    lengths = sorted(len(code_lines(c)) for c in cells(path))
    median, most = lengths[len(lengths) // 2], lengths[int(0.9 * (len(lengths) - 1))]
    limits = [("the middle cell", median, 5), ("nine of ten: one", most, 15),
              ("the longest", lengths[-1], 40)]
    problems = [f"{what} has {found} lines, {limit} at most" for what, found, limit in limits
                if found > limit]
    judge("lengths", path, problems)


MODULES = sorted(p for p in (ROOT / "sftbook").rglob("*.py") if not p.name.startswith("_"))


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_module_has_four_hundred_lines_at_most(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    before = PENDING["module"].get(name(path))
    if before is None:
        assert lines <= 400, f"{lines} lines: cut it"
    else:
        assert 400 < lines <= before, f"{lines} lines, {before} before: change tests/pending.txt"


def nodes(tree, kind):
    "All nodes of a kind in a syntax tree."
    return [node for node in ast.walk(tree) if isinstance(node, kind)]


def assert_pickle_only_refuses(tree, path):
    "The one use of pickle that is allowed: the base of an Unpickler that never imports anything."
    used = [n for n in nodes(tree, ast.Attribute) if ast.unparse(n.value) == "pickle"]
    readers = [n for n in nodes(tree, ast.ClassDef)
               if "pickle.Unpickler" in map(ast.unparse, n.bases)]
    assert len(used) == len(readers) > 0, f"{path}: pickle is used for more than an Unpickler"
    for reader in readers:
        methods = {n.name: n for n in reader.body if isinstance(n, ast.FunctionDef)}
        body = methods["find_class"].body
        raises = len(body) == 1 and isinstance(body[0], ast.Raise)
        assert raises, f"{path}: find_class must raise, always"
    assert not [n for n in nodes(tree, ast.ImportFrom) if n.module == "pickle"], path


def imported(node):
    "The modules that a statement names; none where it is no import."
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) else []


def test_no_pickle_and_no_bare_except():
    for path in [*(ROOT / "sftbook").rglob("*.py"), *(ROOT / "tools").rglob("*.py")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for handler in nodes(tree, ast.ExceptHandler):
            assert handler.type is not None, f"{path}:{handler.lineno}"
        for node in ast.walk(tree):
            names = imported(node)
            assert not {"dill", "joblib", "cloudpickle"} & set(names), f"{path}:{node.lineno}"
            if "pickle" in names:
                assert_pickle_only_refuses(tree, path)
        for call in nodes(tree, ast.Call):
            called = ast.unparse(call.func)
            assert called not in ("torch.load", "torch.save"), f"{path}:{call.lineno}"


def test_tests_of_a_file_have_one_worker(tmp_path):
    "What a file prepares is prepared once; an option that no longer works does not say so."
    shutil.copy(ROOT / "tests/conftest.py", tmp_path)
    source = """import pytest
@pytest.mark.parametrize("i", range(9))
def test_that_writes_its_worker(i, worker_id):
    with open(__file__ + ".workers", "a") as file:
        print(worker_id, file=file)"""
    for name in ("test_a.py", "test_b.py", "test_notebooks.py"):
        (tmp_path / name).write_text(source)
    distributed = re.search("--dist [a-z]+", (ROOT / "Makefile").read_text())[0].split()
    command = [sys.executable, "-m", "pytest", "--numprocesses", "2", *distributed, str(tmp_path)]
    surroundings = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    subprocess.run(command, cwd=tmp_path, env=surroundings, capture_output=True, check=True)
    workers = {p.name.split(".")[0]: set(p.read_text().split()) for p in tmp_path.glob("*.workers")}
    assert {name: len(found) for name, found in workers.items()} == {
        "test_a": 1, "test_b": 1, "test_notebooks": 2}


def test_every_version_is_pinned():
    text = (ROOT / "constraints.txt").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[^\s;+]+", line) for line in lines)
    pinned = {re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in lines}
    settings = configparser.ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    asked = " ".join(v for k, v in settings["DEFAULT"].items() if k.endswith("requirements"))
    needed = {re.sub(r"[-_.]+", "-", re.split(r"[<>=~!\[]", r)[0]).lower() for r in asked.split()}
    assert needed <= pinned, needed - pinned


# Hosts that a file of the project may name: where works are cited, the project itself, namespaces
# of formats, the one that scripts of the site come from when it is built, and names for examples.
HOSTS = {
    "aclanthology.org", "arxiv.org", "dl.acm.org", "doi.org", "ieeexplore.ieee.org", "jmlr.org",
    "openreview.net", "papers.nips.cc", "proceedings.mlr.press", "proceedings.neurips.cc",
    "www.jmlr.org", "www.nature.com", "www.sciencedirect.com", "link.springer.com",
    "github.com", "sftbook.github.io", "users.noreply.github.com",
    "docs.python.org", "python.org", "packaging.python.org", "pytorch.org", "docs.pytorch.org",
    "www.apache.org", "www.w3.org", "schemas.microsoft.com", "schemas.openxmlformats.org",
    "json-schema.org", "matplotlib.org", "anywidget.dev", "cdn.jsdelivr.net",
    "localhost", "127.0.0.1", "a.a.a",
}
RESERVED = re.compile(r"(?:[\w-]+\.)*example\.(?:com|org|net)|192\.0\.2\.\d+")  # RFC 2606, 5737
ADDRESS = re.compile(r"[a-z][a-z+]*://([\w.-]+)", re.IGNORECASE)
BARE_HOST = re.compile(r"(?<![\w@./)-])((?:[a-z0-9-]+\.)+(?:org|com|net|io|dev|cn|edu|ai))"
                       r"(?![\w(.]*\w)")


def project_files():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout
    kinds = (".py", ".ipynb", ".md", ".ini", ".toml")
    files = [ROOT / f for f in listed.split("\n") if f]
    return [p for p in files or ROOT.rglob("*") if p.is_file() and (files or p.suffix in kinds)]


def project_texts():
    "(file, its text) of all files that people write or that notebooks print."
    binary = {".png", ".svg", ".parquet", ".safetensors"}
    for path in project_files():
        if path.name not in ("constraints.txt", "LICENSE") and path.suffix not in binary:
            yield path, path.read_text(encoding="utf-8")


def test_nothing_of_a_machine_is_in_the_files():
    homes = "|".join(["root", r"home/\w+", r"Users/\w+"])
    machine = re.compile(f"/(?:{homes})/|/site-packages/|file:" + "///")
    for path, text in project_texts():
        found = machine.search(text)
        assert path == Path(__file__) or not found, f"{name(path)}: {found.group()}"


def written(path, text):
    "What somebody has written: of a notebook the cells, without what they print."
    if path.suffix != ".ipynb":
        return text
    return "\n".join([*cells(path), *cells(path, "markdown")])


def test_only_hosts_that_documents_may_cite_are_named():
    strange = ".".join(["docs", "strange", "io"])
    assert ADDRESS.findall(f"see https://{strange}/x and {strange}") == [strange]
    text = f"from {strange}, not core.py, a@{strange} or x/{strange}"
    assert BARE_HOST.findall(text) == [strange]
    for path, text in project_texts():
        named = {host.lower().rstrip(".") for host in ADDRESS.findall(text) if "." in host}
        named |= set(BARE_HOST.findall(written(path, text)))
        strange = {host for host in named - HOSTS - {""} if not RESERVED.fullmatch(host)}
        assert not strange, f"{name(path)}: {sorted(strange)}"


def test_the_metadata_can_be_read():
    command = [sys.executable, "setup.py", "--name", "--version"]
    quiet = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=quiet)
    settings = configparser.ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    assert done.stdout.split()[-2:] == ["sftbook", settings["DEFAULT"]["version"]], done.stderr


def test_no_pattern_keeps_all_of_a_repeated_group():
    "`(...)*+` is matched wrongly by Python before 3.11.5; a single character may be repeated so."
    for path in sorted((ROOT / "sftbook").rglob("*.py")):
        found = re.findall(r".*\)[*+?]\+.*", path.read_text(encoding="utf-8"))
        assert not found, (path.name, found)
