"""JavaScript that the site carries with it, so that no page asks another host for anything."""
import base64
import hashlib
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

from chapters import SiteError

# package@version, sha512 of the archive, members wanted, folder below _static
PACKAGES = [
    ("mermaid@11.17.2", "V6K3C8EBdEsPFZXSKMJe6ppQOENxuHARr9GvHX4hh47lAbhMRD9qf4oEK7LoaRQxULMa80/qt5gHO73aCleBBg==", ("dist/mermaid.min.js",), "mermaid"),
    ("requirejs@2.3.7", "DouTG8T1WanGok6Qjg2SXuCMzszOo0eHeH9hDZ5Y4x8Je+9JB38HdTLT4/VA8OaUhBa0JPVHJ0pyBkM1z+pDsw==", ("require.js",), "widgets"),
    ("@jupyter-widgets/html-manager@1.0.15", "5thBIV6ymNgmPVOHvzx+gGy8ZSKmSazhtGw4/c4xJDVzRhG9PTeQsRjF3FUTopvFi//SABeNz1yp47bCrJ3CQA==",
     ("dist/embed-amd.js", "dist/*.woff2", "dist/*.woff"), "widgets"),
]


def digest(path: Path) -> str:
    "sha512 in the form npm uses."
    return base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()


def pack(package: str, integrity: str, archives: Path) -> Path:
    "The package's archive, from the cache or from npm, checked either way."
    archive = archives / (package.replace("@", "-").replace("/", "-").strip("-") + ".tgz")
    if not archive.exists():
        fetched = archives / "fetched"
        shutil.rmtree(fetched, ignore_errors=True)
        fetched.mkdir(parents=True)
        subprocess.run(["npm", "pack", "--silent", package, "--pack-destination", str(fetched)], check=True, capture_output=True, cwd=fetched, timeout=300)
        next(fetched.glob("*.tgz")).rename(archive)
    if digest(archive) != integrity:
        archive.unlink()
        raise SiteError(f"{package}: the archive's checksum is not the pinned one")
    return archive


def unpack(archive: Path, patterns: tuple, target: Path) -> None:
    "The members that match one of `patterns`, flat in `target`."
    target.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            inside = Path(member.name.split("/", 1)[-1])
            if member.isfile() and any(inside.match(p) and len(inside.parts) == len(Path(p).parts) for p in patterns):
                (target / inside.name).write_bytes(tar.extractfile(member).read())


def stay_home(embed: Path) -> None:
    "Missing modules are looked for in our folder, not at a public host; and a schema's style is not worth a line in the reader's console."
    text = embed.read_text(encoding="utf-8")
    text = text.replace('"https://cdn.jsdelivr.net/npm/"', "window.sftbookWidgets")
    text = re.sub(r"(`strict mode: [^{}]*\{[^{}]*\}`[^{}]*?)\w+\.self\.logger\.warn\(\w+\)", r"\1void 0", text)
    embed.write_text(text, encoding="utf-8")


def anywidget(target: Path) -> None:
    "The module that shows an anywidget, from the Python package: its notebook extension is a plain AMD module."
    import anywidget
    shutil.copy(Path(anywidget.__file__).parent / "nbextension" / "index.js", target / "anywidget.js")


def collect(folder: Path) -> list[str]:
    "Fill `folder`; returns what had to be left out, in words."
    done = folder / "complete"
    key = repr(PACKAGES) + digest(Path(__file__))
    if done.exists() and done.read_text() == key:
        return []
    static = folder / "static"
    static.mkdir(parents=True, exist_ok=True)
    try:
        for package, integrity, patterns, target in PACKAGES:
            unpack(pack(package, integrity, folder), patterns, static / target)
    except (OSError, subprocess.SubprocessError) as error:
        return [f"diagrams are shown as text and widgets as their names, because npm could not deliver {package} ({type(error).__name__})"]
    stay_home(static / "widgets" / "embed-amd.js")
    anywidget(static / "widgets")
    done.write_text(key)
    return []
