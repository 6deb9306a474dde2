"""Every notebook runs from top to bottom in the profile `quick`, by nbdev's own `test_nb`, each in
a process of its own, and says nothing on stderr."""
import json
import sys
from pathlib import Path

import forked
import pytest

ROOT = Path(__file__).parent.parent
NBS = ROOT / "nbs"
NOTEBOOKS = sorted(p for p in NBS.rglob("[!_]*.ipynb") if ".ipynb_checkpoints" not in p.parts)


def execute(path):
    "`test_nb` says whether all went well, and keeps what the cells wrote on stderr to itself."
    import nbdev.test

    class Kept(nbdev.test.NBProcessor):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            Kept.notebook = self.nb

    nbdev.test.NBProcessor = Kept
    config = nbdev.test.get_config()
    skipped = config.tst_flags.split()
    passed, _ = nbdev.test.test_nb(path, skip_flags=skipped, basepath=config.config_path)
    outputs = [output for cell in Kept.notebook.cells for output in cell.get("outputs", [])]
    said = ["".join(output["text"]) for output in outputs if output.get("name") == "stderr"]
    print(*said, file=sys.stderr, end="")
    sys.exit(not passed)


def run(path):
    "The finished process that ran a notebook."
    environment = {"SFTBOOK_PROFILE": "quick", "TOKENIZERS_PARALLELISM": "false"}
    return forked.run(execute, path, environment=environment, folder=ROOT)


def name(path):
    return path.relative_to(NBS).with_suffix("").as_posix()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_notebook(path):
    done = run(path)
    assert done.returncode == 0 and not done.stderr, done.stdout[-4000:] + done.stderr[-6000:]


def notebook(folder, *sources):
    "A notebook with these cells."
    cells = [dict(cell_type="code", execution_count=None, id=f"cell{i}", metadata={}, outputs=[],
                  source=source) for i, source in enumerate(sources)]
    path = folder / "some.ipynb"
    path.write_text(json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)))
    return path


@pytest.mark.parametrize("source, said", [
    ("1/0", "ZeroDivisionError"),
    ("import sys; print('odd', file=sys.stderr)", "odd"),
    ("import warnings; warnings.warn('strange')", "strange"),
])
def test_a_notebook_that_fails_or_warns_is_noticed(tmp_path, source, said):
    done = run(notebook(tmp_path, "#| slow\n2/0", "#| eval: false\n3/0", "4 + 4", source))
    assert said in done.stderr and "2/0" not in done.stderr and "3/0" not in done.stderr
