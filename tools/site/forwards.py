"Pages that have moved: at each old address a small page that leads to the new one."
import html
import os
from pathlib import Path

import yaml
from chapters import SiteError

# Without a script the browser follows the first line; with one, it keeps the place on the page.
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>This page has moved</title>
<noscript><meta http-equiv="refresh" content="0; url={url}"></noscript>
<link rel="canonical" href="{url}">
<script>location.replace("{url}" + location.search + location.hash)</script>
</head>
<body><p>This page has moved to <a href="{url}">{new}</a>.</p></body>
</html>
"""


def read_moved(nbs: Path) -> dict[str, str]:
    "{old page: new page} of nbs/moved.yml, without endings."
    path = nbs / "moved.yml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {} if path.exists() else {}


def forwarding(moved: dict[str, str], pages: set[str]) -> dict[str, str]:
    """The pages that have to forward. One that still exists has not moved yet; one that is gone has
    to lead to a page that is there."""
    gone = {old: new for old, new in moved.items() if old not in pages}
    lost = [f"{old} -> {new}" for old, new in gone.items() if new not in pages]
    if lost:
        raise SiteError(f"nbs/moved.yml leads to pages that do not exist: {', '.join(lost)}")
    return gone


def address(old: str, new: str) -> str:
    "The new page as a link from the old one, which works in a folder too."
    return os.path.relpath(f"{new}.html", Path(old).parent).replace(os.sep, "/")


def write_forwards(output: Path, forwards: dict[str, str]) -> None:
    for old, new in forwards.items():
        url = html.escape(address(old, new))
        path = output / f"{old}.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(PAGE.format(url=url, new=html.escape(new)), encoding="utf-8")


def remove_old_pages(built: Path, pages: set[str]) -> None:
    "Sphinx leaves pages whose chapter is gone; nobody should find them."
    kept = {*pages, "genindex", "search", "py-modindex"}
    for path in built.rglob("*.html"):
        page = path.relative_to(built).with_suffix("").as_posix()
        if not page.startswith("_") and page not in kept:
            path.unlink()
