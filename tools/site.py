"""Build the book's site: notebooks -> nbdev's filters -> MyST -> Sphinx.

    python tools/site.py --output _docs

Nothing is executed except what nbdev needs to document a symbol (imports and exported cells);
outputs are the saved ones. The site loads nothing from another host and works when opened from a
folder.
"""
import argparse
import os
import shutil
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HERE = Path(__file__).resolve().parent / "site"
sys.path.insert(0, str(HERE))

import chapters  # noqa: E402
import forwards  # noqa: E402
import vendor  # noqa: E402

# source maps, and the ways to load MathJax that the site does not use
UNUSED = ["*.map", "tex-svg*", "tex-mml-*", "mml-*svg.js", "mml-chtml.js", "tex-chtml-full*",
          "latest.js", "node-main.js"]


def newest(folder: Path) -> float:
    "The time of the last change to the Python files in `folder`."
    return max(path.stat().st_mtime for path in folder.glob("*.py"))


def process_notebooks(root: Path) -> Path:
    "nbdev's filters, with ours for exported cells; what is unchanged is taken from the last build."
    import filters
    import nbdev.serve
    nbdev.serve.FilterDefaults = filters.BookFilter
    stale = not (root / "_proc").exists() or (root / "_proc").stat().st_mtime < newest(HERE)
    sys.path.insert(0, str(root))
    folders = [str(HERE), str(root), os.environ.get("PYTHONPATH")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, folders))
    return Path(nbdev.serve.proc_nbs(path=str(root / "nbs"), force=stale))


def run_sphinx(source: Path, output: Path, work: Path, fresh: bool) -> int:
    "Sphinx with every warning an error; all warnings are listed before it gives up."
    from sphinx.cmd.build import main as sphinx
    flags = ["-E"] if fresh else []
    return sphinx(["-q", "-W", "--keep-going", *flags, "-b", "html", "-c", str(HERE),
                   "-d", str(work / "doctrees"), str(source), str(output)])


def put_in_place(built: Path, output: Path, moved: dict) -> None:
    "The finished site replaces the old one at once; what is no site is left alone."
    if output.exists() and any(output.iterdir()) and not (output / ".buildinfo").exists():
        raise chapters.SiteError(
            f"{output} holds something that is not a site: name another folder")
    beside = output.with_name(f".{output.name}.new")
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(built, beside, ignore=shutil.ignore_patterns(*UNUSED))
    forwards.write_forwards(beside, moved)
    shutil.rmtree(output, ignore_errors=True)
    beside.rename(output)


def build(root: Path, output: Path, fresh: bool = False) -> int:
    "Build the site of the project in `root` into `output`; returns Sphinx's exit code."
    work = root / ".cache" / "site"
    work.mkdir(parents=True, exist_ok=True)
    parts = chapters.read_sidebar(root / "nbs")
    pages = {name.removesuffix(".ipynb") for name in parts.notebooks}
    moved = forwards.forwarding(forwards.read_moved(root / "nbs"), pages)
    left_out = vendor.collect(work / "vendor")
    for line in left_out:
        print(f"left out: {line}")
    processed = process_notebooks(root)
    chapters.convert(root / "nbs", processed, work / "source", parts, widgets=not left_out)
    os.environ.update(SFTBOOK_SITE_ROOT=str(root), SFTBOOK_SITE_VENDOR=str(work / "vendor"))
    if code := run_sphinx(work / "source", work / "html", work, fresh):
        return code
    # "download this notebook" gives the notebook itself, not the page made from it
    for notebook in parts.notebooks:
        shutil.copy(root / "nbs" / notebook, work / "html" / "_sources" / notebook)
    forwards.remove_old_pages(work / "html", pages)
    put_in_place(work / "html", output, moved)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("_docs"), help="folder of the site")
    parser.add_argument("--root", type=Path, default=ROOT, help="project whose nbs/ is built")
    parser.add_argument("--fresh", action="store_true", help="ignore what earlier builds left")
    args = parser.parse_args()
    root, output, started = args.root.resolve(), args.output.resolve(), time.monotonic()
    os.chdir(root)
    try:
        code = build(root, output, args.fresh)
    except chapters.SiteError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if code == 0:
        print(f"{output}/index.html ({time.monotonic() - started:.0f} s)")
    return code


if __name__ == "__main__":
    sys.exit(main())
