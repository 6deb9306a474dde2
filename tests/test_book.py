"The name of the code that printed an output: what changes it, and what must not."
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import book  # noqa: E402
import reach  # noqa: E402

CORE = '''"What everything stands on."
import math
from dataclasses import dataclass

LEVEL = 3

@dataclass
class Point:
    "A place."
    x:float # metres
    y:float = 0.

    def far(self, scale:float=1., # of the map
           )->float:
        "How far it is from the start."
        return math.hypot(self.x, self.y)*scale

def nobody_calls(): return LEVEL + 1

REGISTRY = {}

def register(function):
    REGISTRY[function.__name__] = function
    return function
'''
USE = '''from sftbook.core import Point, register, REGISTRY

def unit(): return 2.

def distance(x, y):
    "Of two numbers."
    return Point(x, y).far(unit())

def other(): return distance(0, 1) + 1

@register
def registered(): return "abc"

def by_name(name): return REGISTRY[name]()
'''
NOTEBOOK = ["from sftbook.use import distance", "distance(3, 4)", "#| slow\ndistance(5, 6)"]


@pytest.fixture
def name(tmp_path):
    "A function that writes the package, changed or not, and gives the notebook's name."
    def make(core=CORE, use=USE, cells=NOTEBOOK, **others):
        folder = tmp_path / "sftbook"
        folder.mkdir(exist_ok=True)
        modules = {"__init__": "", "core": core, "use": use, **others}
        for module, text in modules.items():
            (folder / f"{module}.py").write_text(text)
        return reach.Package(tmp_path).name(cells, tmp_path)["code"]
    return make


def changed(text, *pairs):
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    return text


SAME = [
    ("comment", "core", [("# metres", "# feet")]),
    ("docstring", "core", [('"A place."\n', '"Where something is."\n')]),
    ("no docstring", "use", [('    "Of two numbers."\n', "")]),
    ("docstring of the module", "core", [('"What everything stands on."\n', "")]),
    ("annotations", "core", [("scale:float=1.", "scale: 'float|None' = 1."), (")->float:", "):")]),
    ("line breaks", "use", [("return Point(x, y).far(unit())",
                             "return Point(\n        x,\n        y,\n    ).far(unit())")]),
    ("one statement a line", "use", [("def unit(): return 2.", "def unit():\n    return 2.")]),
    ("quotes and brackets", "core", [("math.hypot(self.x, self.y)*scale",
                                      "(math.hypot(self.x, self.y) * scale)")]),
    ("unreachable function", "core", [("LEVEL + 1", "LEVEL + 2")]),
    ("unreachable name", "core", [("LEVEL = 3", "LEVEL = 4")]),
    ("unreachable neighbour", "use", [("distance(0, 1) + 1", "distance(0, 1) + 2")]),
]
OTHER = [
    ("body", "use", [("Point(x, y)", "Point(y, x)")]),
    ("function behind it", "use", [("return 2.", "return 3.")]),
    ("method of a class", "core", [("*scale", "/scale")]),
    ("default", "core", [("scale:float=1.", "scale:float=2.")]),
    ("field", "core", [("y:float = 0.", "y:float = 1.")]),
    ("decorator", "core", [("@dataclass\n", "@dataclass(frozen=True)\n")]),
    ("import from another package", "core", [("import math", "import cmath as math")]),
    ("what is done on import", "core", [("REGISTRY = {}", "print(1)\nREGISTRY = {}")]),
    ("registered by a decorator of the package", "use", [('"abc"', '"abd"')]),
]


@pytest.mark.parametrize("module, pairs", [c[1:] for c in SAME], ids=[c[0] for c in SAME])
def test_layout_and_what_is_not_reached_keep_the_name(name, module, pairs):
    text = changed({"core": CORE, "use": USE}[module], *pairs)
    assert name(**{module: text}) == name()


@pytest.mark.parametrize("module, pairs", [c[1:] for c in OTHER], ids=[c[0] for c in OTHER])
def test_reached_code_changes_the_name(name, module, pairs):
    text = changed({"core": CORE, "use": USE}[module], *pairs)
    assert name(**{module: text}) != name()


@pytest.mark.parametrize("cells", [
    [NOTEBOOK[0], "# so far\ndistance(\n    3,\n    4,\n)", NOTEBOOK[2]],
    ["#| hide\n" + NOTEBOOK[0], "#| label: x\ndistance(3, 4)", "# 1", "#| slow\ndistance(5,6)"],
])
def test_layout_of_cells_keeps_the_name(name, cells):
    assert name(cells=cells) == name()


@pytest.mark.parametrize("cells", [
    [*NOTEBOOK[:1], "distance(3, 5)", *NOTEBOOK[2:]],
    [*NOTEBOOK[:2], "distance(5, 6)"],
    [*NOTEBOOK[:1], "distance(3, 4);", *NOTEBOOK[2:]],
    ["from sftbook.use import distance\ndistance(3, 4)", *NOTEBOOK[2:]],
])
def test_cells_that_print_something_else_change_the_name(name, cells):
    assert name(cells=cells) != name()


def test_a_definition_that_moves_keeps_the_name(name):
    moved = USE.replace("def unit(): return 2.\n", "from sftbook.units import unit\n")
    assert name(use=moved, units="def unit(): return 2.\n") == name()
    assert name(use=moved, units="def unit(): return 3.\n") != name()
    relative = USE.replace("from sftbook.core", "from .core")
    assert name(use=relative) == name()


@pytest.mark.parametrize("cell", [
    "from sftbook import use", "import sftbook.use", "import sftbook.use as u",
    "from sftbook.use import *", "import_module('sftbook.use')"])
def test_a_module_that_is_imported_whole_counts_whole(name, cell):
    changed_use = USE.replace("distance(0, 1) + 1", "distance(0, 1) + 2")
    assert name(cells=[cell]) != name(cells=[cell], use=changed_use)


def test_imports_inside_functions_count(name):
    late = 'def distance(x, y):\n    from sftbook.units import unit\n    return unit()\n'
    units = "def unit(): return 2.\n"
    assert name(use=late, units=units) != name(use=late, units=units.replace("2", "3"))


def test_the_command_and_its_help_count(name):
    command = '@app.command()\ndef train(rows:Annotated[str, option("rows")]):\n    "Help."\n'
    cells = ["!sftbook train --data x"]
    for other in (command.replace("Help", "More help"), command.replace('"rows"', '"data"')):
        assert name(cells=cells, cli=command) != name(cells=cells, cli=other)


def test_files_beside_the_notebook_count(name, tmp_path):
    cells = ["from pathlib import Path", "Path('results.json').read_text()"]
    (tmp_path / "results.json").write_text("1")
    before = name(cells=cells)
    (tmp_path / "results.json").write_text("2")
    assert name(cells=cells) != before


# ---- the program

@pytest.fixture
def project(tmp_path, monkeypatch):
    "A book of one notebook and one module."
    (tmp_path / "sftbook").mkdir()
    (tmp_path / "sftbook" / "use.py").write_text("def double(x): return 2*x\n")
    (tmp_path / "nbs").mkdir()
    sources = ["from sftbook.use import double", "double(4)"]
    cells = [dict(cell_type="code", execution_count=None, id=f"c{i}", metadata={}, outputs=[],
                  source=[source]) for i, source in enumerate(sources)]
    path = tmp_path / "nbs" / "10_some.ipynb"
    path.write_text(json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)))
    monkeypatch.setattr(book, "ROOT", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    book.package.cache_clear()
    yield path
    book.package.cache_clear()


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["book.py", *arguments])
    book.package.cache_clear()
    try:
        book.main()
    except SystemExit as stopped:
        return stopped.code
    return 0


def test_check_names_what_changed_and_stamp_ends_it(project, monkeypatch, capsys):
    assert call(monkeypatch, "--check") == 1
    assert call(monkeypatch, "--stamp", "10_some") == 0 == call(monkeypatch, "--check")
    (project.parent.parent / "sftbook" / "use.py").write_text("def double(x): return x + x\n")
    capsys.readouterr()
    assert call(monkeypatch, "--check") == 1
    assert "10_some: outputs of other code (sftbook.use)" in capsys.readouterr().out
    assert call(monkeypatch, "--stamp", "10_some") == 0
    assert capsys.readouterr().out == "10_some: stamped, not run (sftbook.use)\n"
    assert call(monkeypatch, "--check") == 0
    assert call(monkeypatch, "--stamp") == 2  # no names


def test_a_run_saves_outputs_seconds_and_the_name(project, monkeypatch):
    assert book.run_and_write(project)[0].startswith("10_some: ")
    saved = book.read(project)
    assert saved["cells"][1]["outputs"][0]["data"]["text/plain"] == ["8"]
    assert saved["metadata"]["sftbook"]["seconds"] >= 0 and not book.is_stale(project)


def test_the_longest_runs_first_and_the_unknown_before_it(tmp_path):
    paths = []
    for name, known in (("a", {"seconds": 1}), ("b", {}), ("c", {"seconds": 9})):
        paths.append(tmp_path / f"{name}.ipynb")
        paths[-1].write_text(json.dumps({"metadata": {"sftbook": known}}))
    assert [p.stem for p in book.longest_first(paths)] == ["b", "c", "a"]
