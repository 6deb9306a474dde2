"Every notebook runs from top to bottom in the profile `quick`, each in a process of its own, and says nothing on stderr."
import os
import subprocess
import sys
from pathlib import Path

import pytest

NBS = Path(__file__).parent.parent / "nbs"
NOTEBOOKS = sorted(p for p in NBS.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)

RUN = """
import sys
import matplotlib
matplotlib.use("agg")
from execnb.nbio import read_nb
from execnb.shell import CaptureShell
import re

skip = re.compile(r"^#[|]\\s*(eval:\\s*false|slow|gpu)\\s*$", re.MULTILINE)
nb, shell = read_nb(sys.argv[1]), CaptureShell(sys.argv[2])
nb.cells = [c for c in nb.cells if not (c.cell_type == "code" and skip.search(c.source))]
said = []
shell.run_all(nb, exc_stop=True)
for cell in nb.cells:
    for output in cell.get("outputs", []):
        if output.get("name") == "stderr": said.append("".join(output["text"]))
if said: sys.exit("on stderr: " + "".join(said))
"""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.relative_to(NBS).with_suffix("").as_posix())
def test_notebook(path):
    env = {**os.environ, "SFTBOOK_PROFILE": "quick", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run([sys.executable, "-c", RUN, str(path), str(path.parent)], env=env, cwd=path.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-6000:]
