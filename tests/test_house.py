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
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NBS = ROOT / "nbs"
NOTEBOOKS = sorted(p for p in NBS.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
CHAPTERS = [p for p in NOTEBOOKS if p.stem != "index"]


def cells(path, kind="code"):
    return ["".join(c["source"]) for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == kind]


def code_lines(source):
    return [line for line in source.splitlines() if line.strip() and not line.startswith("#|")]


def name(path):
    return path.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    "The project in a temporary folder, to export and clean without touching the original."
    folder = tmp_path_factory.mktemp("copy") / "project"
    folder.mkdir()
    for part in ("nbs", "sftbook"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    for file in ("settings.ini", "setup.py", "pyproject.toml"):
        shutil.copy(ROOT / file, folder)
    return folder


def run_tool(copy, tool, *arguments):
    done = subprocess.run([str(Path(sys.executable).parent / tool), *arguments], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0 and "Failed" not in done.stderr, done.stderr  # nbdev_clean warns and goes on


def same(copy, paths):
    return [p.as_posix() for p in paths if not (copy / p).exists() or not filecmp.cmp(ROOT / p, copy / p, shallow=False)]


def test_the_package_is_what_the_notebooks_export(copy):
    shutil.rmtree(copy / "sftbook")
    (copy / "sftbook").mkdir()
    shutil.copy(ROOT / "sftbook" / "__init__.py", copy / "sftbook")
    run_tool(copy, "nbdev_export")
    modules = {p.relative_to(base) for base in (ROOT, copy) for p in (base / "sftbook").rglob("*.py")}
    assert not [m for m in same(copy, sorted(modules)) if "__init__" not in m or (ROOT / m).read_text().strip()], "run nbdev_export"


def test_notebooks_are_clean(copy):
    run_tool(copy, "nbdev_clean")
    assert same(copy, [p.relative_to(ROOT) for p in NOTEBOOKS]) == [], "run nbdev_clean"


def test_saved_outputs_belong_to_the_code():
    done = subprocess.run([sys.executable, str(ROOT / "tools" / "book.py"), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_readme_is_made_from_the_index():
    done = subprocess.run([sys.executable, str(ROOT / "tools" / "readme.py"), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_importing_sftbook_is_fast_and_light():
    def measure():
        code = "import sys, time; start = time.perf_counter(); import sftbook; print(time.perf_counter() - start, 'torch' in sys.modules)"
        seconds, heavy = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
        assert heavy == "False"
        return float(seconds)

    assert statistics.median(measure() for _ in range(5)) <= 0.2


def test_the_command_line_answers_quickly():
    def measure():
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "sftbook.cli", "--help"], capture_output=True, check=True)
        return time.perf_counter() - start

    assert min(measure() for _ in range(3)) < 2.0


@pytest.mark.parametrize("path", CHAPTERS, ids=name)
def test_cells_are_short(path):
    lengths = sorted(len(code_lines(c)) for c in cells(path))
    assert lengths[len(lengths) // 2] <= 6 and lengths[int(0.9 * (len(lengths) - 1))] <= 18 and lengths[-1] <= 40, lengths[-5:]


@pytest.mark.parametrize("path", CHAPTERS, ids=name)
def test_an_exported_cell_is_followed_by_one_that_shows_or_tests_it(path):
    exported = ["#| export" in c for c in cells(path)]
    bare = sum(a and b for a, b in zip(exported, exported[1:] + [True]))
    assert bare <= 0.5 * sum(exported), f"{bare} of {sum(exported)} exported cells have no example right after them"


@pytest.mark.parametrize("path", CHAPTERS, ids=name)
def test_imports_stand_alone(path):
    for cell in cells(path):
        lines = ast.parse(re.sub(r"^[%!].*$", "pass", cell, flags=re.MULTILINE)).body
        kinds = {isinstance(node, (ast.Import, ast.ImportFrom)) for node in lines}
        assert len(kinds) < 2, cell[:300]


@pytest.mark.parametrize("path", CHAPTERS, ids=name)
def test_chapters_begin_and_end_as_they_should(path):
    prose = cells(path, "markdown")
    assert re.match(r"# \S.*\n\n> \S", prose[0]), "title and one line that says what the chapter is for"
    assert any("## What to remember" in p for p in prose) and any("## Exercises" in p for p in prose)
    assert "#| hide" in cells(path)[-1], "solutions are hidden and tested"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_no_saved_output_is_an_error(path):
    outputs = [o for c in json.loads(path.read_text(encoding="utf-8"))["cells"] for o in c.get("outputs", [])]
    assert not [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]


def module_of(path):
    "The module that a notebook exports, without the package's name; None where it exports none."
    found = re.search(r"#\| default_exp (\S+)", "\n".join(cells(path)))
    return found and found[1]


def used_by(module):
    "Modules of the package that a module imports, inside functions too."
    file = ROOT / "sftbook" / (module.replace(".", "/") + ".py")
    nodes = [n for n in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(n, ast.ImportFrom)]
    return {n.module.removeprefix("sftbook.") for n in nodes if (n.module or "").startswith("sftbook.")}


def test_modules_import_only_downwards():
    listed = re.findall(r"- (\S+\.ipynb)", (NBS / "sidebar.yml").read_text(encoding="utf-8"))
    order = [module for file in listed if (module := module_of(NBS / file))]
    for i, module in enumerate(order):
        used = used_by(module)
        assert used <= set(order[:i]), f"{module} imports {used - set(order[:i])}"


def assert_pickle_only_refuses(tree, path):
    "The one use of pickle that is allowed: the base class of an Unpickler that never imports anything."
    used = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "pickle"]
    readers = [n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and "pickle.Unpickler" in map(ast.unparse, n.bases)]
    assert len(used) == len(readers) > 0, f"{path}: pickle is used for more than an Unpickler"
    for reader in readers:
        body = next(n for n in reader.body if isinstance(n, ast.FunctionDef) and n.name == "find_class").body
        assert isinstance(body[-1], ast.Raise) and len(body) == 1, f"{path}: find_class must raise, always"
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module == "pickle"], path


def test_no_pickle_and_no_bare_except():
    for path in [*(ROOT / "sftbook").rglob("*.py"), *(ROOT / "tools").rglob("*.py")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            assert not (isinstance(node, ast.ExceptHandler) and node.type is None), f"{path}:{node.lineno}"
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not {"dill", "joblib", "cloudpickle"} & set(names), f"{path}:{node.lineno}"
            if "pickle" in names:
                assert_pickle_only_refuses(tree, path)
            called = isinstance(node, ast.Call) and ast.unparse(node.func)
            assert called not in ("torch.load", "torch.save"), f"{path}:{node.lineno}"


def test_every_version_is_pinned():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[^\s;+]+", line) for line in lines)
    pinned = {re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in lines}
    settings = configparser.ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    asked = " ".join(v for k, v in settings["DEFAULT"].items() if k.endswith("requirements"))
    needed = {re.sub(r"[-_.]+", "-", re.split(r"[<>=~!\[]", r)[0]).lower() for r in asked.split()}
    assert needed <= pinned, needed - pinned


def test_nothing_of_a_machine_is_in_the_files():
    machine = re.compile(r"/(?:root|home/\w+|Users/\w+)/|/site-packages/|file:///|pypi\.org|registry\.npmjs")
    skipped = {"constraints.txt", "LICENSE"}
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    files = [ROOT / f for f in listed.stdout.split("\n") if f] or [p for p in ROOT.rglob("*") if p.suffix in (".py", ".ipynb", ".md", ".ini", ".toml")]
    for path in files:
        if path.name in skipped or path == Path(__file__) or not path.is_file() or path.suffix in (".png", ".svg", ".parquet", ".safetensors"):
            continue
        found = machine.search(path.read_text(encoding="utf-8"))
        assert not found, f"{name(path)}: {found.group()}"


def test_the_metadata_can_be_read():
    done = subprocess.run([sys.executable, "setup.py", "--name", "--version"], cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONWARNINGS": "ignore"})
    settings = configparser.ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    assert done.stdout.split()[-2:] == ["sftbook", settings["DEFAULT"]["version"]], done.stderr
