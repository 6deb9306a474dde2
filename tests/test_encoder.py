"The Chinese encoder of the package: whole, small, open to plain transformers, and in the wheel."
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import forked

from sftbook.core import read_json
from sftbook.folders import check_manifest
from sftbook.corpora import checkpoint_path, load_corpus

ROOT = Path(__file__).parent.parent
FOLDER = Path(checkpoint_path("sftbook-zh"))


def test_it_is_whole_and_small():
    check_manifest(FOLDER)
    assert (FOLDER / "model.safetensors").stat().st_size <= 24e6
    assert not [p for p in FOLDER.rglob("*") if p.suffix in (".bin", ".pt", ".pkl", ".py")]
    assert read_json(FOLDER / "pretraining.json")["evaluations"][-1]["accuracy"] > 0.35


FILL = """
import sys
from transformers import pipeline
fill = pipeline("fill-mask", sys.argv[1])
print(fill("中华人民共和[MASK]成立了。")[0]["token_str"], "sftbook" in sys.modules)
"""


def test_plain_transformers_opens_it_without_sftbook(tmp_path):
    offline = os.environ | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", FILL, str(FOLDER)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=offline)
    assert done.stdout.split() == ["国", "False"], done.stderr


def test_it_is_in_the_wheel(tmp_path):
    project = copy_of_project(tmp_path)
    alone = ["--disable-pip-version-check", "--no-deps", "--no-build-isolation"]
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", *alone,
               "--wheel-dir", str(tmp_path / "out"), str(project)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names = zipfile.ZipFile(next((tmp_path / "out").glob("*.whl"))).namelist()
    files = [p.relative_to(FOLDER).as_posix() for p in FOLDER.rglob("*") if p.is_file()]
    assert files and {f"sftbook/checkpoints/sftbook-zh/{file}" for file in files} <= set(names)


def copy_of_project(tmp_path):
    "What a build needs, in another folder, so that it leaves nothing behind."
    project = tmp_path / "project"
    project.mkdir()
    for name in ("setup.py", "settings.ini", "pyproject.toml", "MANIFEST.in", "README.md",
                 "LICENSE", "constraints.txt"):
        shutil.copy(ROOT / name, project / name)
    unwanted = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "sftbook", project / "sftbook", ignore=unwanted)
    return project


def test_the_command_line_fine_tunes_it(tmp_path):
    rows = load_corpus("zh-reviews").shuffle(seed=0).select(range(120))
    data = tmp_path / "reviews.csv"
    rows.select_columns(["text", "label"]).to_csv(str(data), index=False)
    options = ["--data", str(data), "--checkpoint", "sftbook-zh", "--epochs", "1"]
    done = forked.command(tmp_path, "train", *options, "--output", tmp_path / "run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "run" / "model.safetensors").is_file()
