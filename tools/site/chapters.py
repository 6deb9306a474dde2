"""The book's table of contents, and its notebooks turned from nbdev's Quarto flavour into what MyST understands."""
import ast
import html
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import glossary
import yaml


class SiteError(Exception):
    "Something in the notebooks that the site cannot be built from."


# ---- the table of contents

@dataclass
class Parts:
    "sidebar.yml: captions with their notebooks; the first part is the landing page."
    sections: list  # [(caption, [notebook, ...]), ...]

    @property
    def notebooks(self) -> list[str]:
        return [name for _, names in self.sections for name in names]


def read_sidebar(nbs: Path) -> Parts:
    "The table of contents, in the form Quarto reads; every chapter named is there, and every notebook is named."
    contents = yaml.safe_load((nbs / "sidebar.yml").read_text(encoding="utf-8"))["website"]["sidebar"]["contents"]
    sections = [(entry["section"], entry["contents"]) if isinstance(entry, dict) else ("", [entry]) for entry in contents]
    parts = Parts(sections)
    missing = [name for name in parts.notebooks if not (nbs / name).exists()]
    unnamed = sorted({p.relative_to(nbs).as_posix() for p in nbs.rglob("[!_.]*.ipynb") if ".ipynb_checkpoints" not in p.parts} - set(parts.notebooks))
    if missing:
        raise SiteError(f"nbs/sidebar.yml names chapters that do not exist: {', '.join(missing)}")
    if unnamed:
        raise SiteError(f"notebooks that nbs/sidebar.yml does not name: {', '.join(unnamed)}")
    if parts.notebooks[0] != "index.ipynb":
        raise SiteError("the first entry of nbs/sidebar.yml has to be index.ipynb, the landing page")
    return parts


def toctrees(parts: Parts) -> str:
    "Hidden toctrees for the landing page: the sidebar is made from them."
    blocks = []
    for caption, names in parts.sections:
        names = [name.removesuffix(".ipynb") for name in names if name != "index.ipynb"]
        if names:
            blocks.append("\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *names, "```"]))
    return "\n\n".join(blocks)


# ---- Markdown

CALLOUTS = {"note": "note", "tip": "tip", "warning": "warning", "important": "important", "caution": "caution"}
FENCE = re.compile(r"^(```+|~~~+)")
DIV = re.compile(r"^(:{3,})\s*(?:\{(.*)\}|([\w-]+))?\s*$")
ATTRIBUTE = re.compile(r'([\w-]+)="([^"]*)"')


def split_fences(text: str) -> list[tuple[bool, str]]:
    "(is code, lines) pieces: what stands in a code fence is never rewritten."
    pieces, lines, fence = [], [], ""
    for line in text.split("\n"):
        mark = FENCE.match(line.strip())
        if mark and not fence:
            pieces.append((False, "\n".join(lines)))
            lines, fence = [line], mark.group(1)
        elif fence and line.strip() == fence:
            pieces.append((True, "\n".join([*lines, line])))
            lines, fence = [], ""
        else:
            lines.append(line)
    return [*pieces, (bool(fence), "\n".join(lines))]


def open_div(attributes: str, depth: int) -> list[str]:
    "Quarto's `::: {.callout-note title=\"...\"}` as the directive MyST has for it."
    fence, options = ":" * depth, dict(ATTRIBUTE.findall(attributes))
    classes = re.findall(r"\.([\w-]+)", ATTRIBUTE.sub("", attributes)) or [attributes.strip()]
    callout = next((CALLOUTS[c.removeprefix("callout-")] for c in classes if c.startswith("callout-") and c.removeprefix("callout-") in CALLOUTS), None)
    if callout and options.get("collapse") == "true":
        return [f"{fence}{{dropdown}} {options.get('title', callout.title())}", ":color: " + ("warning" if callout in ("warning", "caution") else "info")]
    if callout and options.get("title"):
        return [f"{fence}{{admonition}} {options['title']}", f":class: {callout}"]
    return [f"{fence}{{{callout}}}"] if callout else [f"{fence}{{div}} {' '.join(classes)}"]


def convert_divs(text: str, where: str) -> str:
    "Every `:::` block; the outer ones get longer fences than the inner ones, as MyST wants."
    out, depth = [], 0
    for piece_is_code, piece in split_fences(text):
        if piece_is_code:
            out.append(piece)
            continue
        lines = []
        for line in piece.split("\n"):
            mark = DIV.match(line)
            if not mark:
                lines.append(line)
            elif mark.group(2) or mark.group(3):
                lines += open_div(mark.group(2) or "." + mark.group(3), 9 - depth)
                depth += 1
            else:
                depth -= 1
                lines.append(":" * (9 - depth))
            if depth < 0:
                raise SiteError(f"{where}: a ::: closes a block that was not opened in the same cell")
        out.append("\n".join(lines))
    if depth:
        raise SiteError(f"{where}: a ::: block is not closed in its own cell")
    return "\n".join(out)


def mermaid_html(piece: str) -> str:
    "A diagram as HTML: a small script of ours turns it into SVG, which a module from another file could not when a page is opened from a folder."
    source = "\n".join(piece.split("\n")[1:-1])
    return f'```{{raw}} html\n<pre class="mermaid">{html.escape(source)}</pre>\n```'


REFERENCE = re.compile(r"(?<![\w`@/.\[])@((?:sec|fig|tbl|eq)-[\w-]+)")
CITATION = re.compile(r"\[((?:-?@[\w:.-]+(?:,[^;\]]*)?)(?:;\s*-?@[\w:.-]+)*)\]")
IN_TEXT = re.compile(r"(?<![\w`@/.\[{])@([A-Za-z][\w:-]*\d{4}[\w:-]*)")
HEADING_LABEL = re.compile(r"^(#+ .*?)\s*\{#([\w-]+)[^}]*\}\s*$", re.M)
EQUATION_LABEL = re.compile(r"\$\$\s*\{#(eq-[\w-]+)\}")
CODE_SPAN = re.compile(r"(?<![`\[])`([A-Za-z_][\w.]*)(\(\))?`(?![`\]])")


def convert_references(text: str) -> str:
    "Quarto's @fig-x, @sec-x, {#eq-x} and [@key] in MyST's words."
    text = HEADING_LABEL.sub(r"(\2)=\n\1", text)
    text = EQUATION_LABEL.sub(r"$$ (\1)", text)
    text = CITATION.sub(lambda m: "{footcite:p}`" + ",".join(re.findall(r"@([\w:.-]+)", m.group(1))) + "`", text)
    text = REFERENCE.sub(lambda m: f"{{eq}}`{m[1]}`" if m[1].startswith("eq-") else f"{{ref}}`{m[1]}`" if m[1].startswith("sec-") else f"{{numref}}`{m[1]}`", text)
    return IN_TEXT.sub(r"{footcite:t}`\1`", text)


def link_symbols(text: str, symbols: dict[str, str]) -> str:
    "`name` in backticks becomes a link where the book documents that name; headings and names of parameters stay as they are."
    def link(match):
        target = symbols.get(match.group(1)) or symbols.get(match.group(1).removeprefix("sftbook."))
        return f"[`{match.group(1)}{match.group(2) or ''}`](#{target})" if target else match.group(0)
    return "\n".join(line if line.startswith(("#", ":::", "| `")) else CODE_SPAN.sub(link, line) for line in text.split("\n"))


def convert_markdown(text: str, symbols: dict[str, str], where: str) -> str:
    "One Markdown cell, from Quarto's flavour to MyST's."
    pieces = []
    for is_code, piece in split_fences(convert_divs(text, where)):
        if is_code:
            pieces.append(mermaid_html(piece) if re.match(r"```+\s*\{?mermaid\}?", piece) else piece)
        else:
            pieces.append(link_symbols(convert_references(piece), symbols))
    return "\n".join(pieces)


# ---- cells

OPTION = re.compile(r"^#\|\s*([\w-]+)\s*:\s*(.*?)\s*$")
DIRECTIVE = re.compile(r"^#\|.*$")
TAGS = {("echo", "false"): "remove-input", ("output", "false"): "remove-output", ("code-fold", "true"): "hide-input", ("include", "false"): "remove-cell",
        ("warning", "false"): "remove-stderr"}


def joined(value) -> str:
    return "".join(value) if isinstance(value, list) else (value or "")


def split_options(source: str) -> tuple[dict[str, str], str]:
    "Quarto's `#| key: value` lines and the code without any directive."
    options, lines = {}, source.split("\n")
    while lines and (DIRECTIVE.match(lines[0]) or (not lines[0].strip() and len(lines) > 1)):
        if match := OPTION.match(lines.pop(0)):
            options[match.group(1)] = match.group(2).strip('"')
    return options, "\n".join(lines)


def markdown_cell(source: str) -> dict:
    return {"cell_type": "markdown", "metadata": {}, "source": source}


def as_is(cell: dict, symbols: dict[str, str]) -> list[dict]:
    "A cell that prints Markdown (`show_doc`, `output: asis`) becomes that Markdown."
    found = []
    for output in cell.get("outputs", []):
        text = joined(output.get("data", {}).get("text/markdown")) or joined(output.get("text"))
        if text.strip():
            found.append(markdown_cell(link_symbols(text, symbols)))
    return found


def source_block(code: str, summary: str = "Source", opened: bool = True) -> dict:
    "Code that can be folded away. What is exported is open, because it is there to be read."
    opening = f'<details class="source"{" open" if opened else ""}><summary>{summary}</summary>'
    before, after = (f"```{{raw}} html\n{text}\n```" for text in (opening, "</details>"))
    return markdown_cell(f"{before}\n\n````python\n{code.strip()}\n````\n\n{after}")


def only_imports(code: str) -> bool:
    "Four lines of imports or more: nobody reads those, and nobody may miss them."
    try:
        found = ast.parse(code).body
    except SyntaxError:
        return False
    return code.strip().count("\n") >= 3 and all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in found)


def code_cell(cell: dict, symbols: dict[str, str]) -> dict | None:
    "A code cell with Quarto's options turned into myst-nb's tags."
    options, code = split_options(joined(cell["source"]))
    tags = [tag for (key, value), tag in TAGS.items() if options.get(key, "").lower() == value]
    if "remove-cell" in tags or not code.strip():
        return None
    if only_imports(code) and not cell.get("outputs") and "remove-input" not in tags:
        return source_block(code, "Imports", opened=False)
    metadata = {"tags": tags}
    if caption := options.get("fig-cap") or options.get("tbl-cap"):
        metadata["mystnb"] = {"figure": {"caption": caption, **({"name": options["label"]} if "label" in options else {})}}
    if alt := options.get("fig-alt"):
        metadata.setdefault("mystnb", {})["image"] = {"alt": alt}
    outputs = cell.get("outputs", [])
    for output in outputs:
        if "text/markdown" in output.get("data", {}):
            output["data"]["text/markdown"] = joined(output["data"]["text/markdown"]).replace("\n---\n", "\n")
    return {"cell_type": "code", "metadata": metadata, "source": code, "outputs": outputs, "execution_count": None}


def in_order(documented: list[dict], code: str) -> list[dict]:
    "The symbols of one exported cell as they stand in it: nbdev adds them from the last to the first."
    def position(cell):
        name = re.match(r"::::\{py:\w+\} ([\w.]+)", cell["source"])
        found = name and re.search(rf"^(?:async )?(?:def|class) {re.escape(name.group(1))}\b", code, re.M)
        return found.start() if found else len(code)
    return sorted(documented, key=position)


def convert_cells(cells: list[dict], symbols: dict[str, str], where: str) -> list[dict]:
    "All cells of a page. Exported code comes after the documentation of what it defines."
    out, documented, code = [], [], ""
    for cell in [*cells, {"cell_type": "raw", "source": ""}]:
        source, kind = joined(cell["source"]), cell["cell_type"]
        if kind == "code" and re.search(r"^show_doc\(", source, re.M):
            documented += as_is(cell, symbols)
            continue
        out += [*in_order(documented, code), *([source_block(code)] if code else [])]
        documented, code = [], ""
        if kind == "code" and cell["metadata"].get("exported") and re.search(r"^(?:async )?(?:def|class) (?!_)", source, re.M):
            code = split_options(source)[1]
        elif kind == "code" and re.search(r"^#\| *output: *asis", source, re.M):
            out += as_is(cell, symbols)
        elif kind == "code":
            out += filter(None, [code_cell(cell, symbols)])
        elif kind == "markdown" and "WARNING: THIS FILE WAS AUTOGENERATED" not in source:
            out.append(markdown_cell(convert_markdown(source, symbols, where)))
    return out


TITLE = re.compile(r"^# .+$", re.M)
LEAD = re.compile(r"^> (.+)$", re.M)


def head_page(cells: list[dict], module: str) -> None:
    "Below the title: the `>` line as the lead paragraph, and the module that the page documents."
    first = next((cell for cell in cells if cell["cell_type"] == "markdown" and TITLE.search(joined(cell["source"]))), None)
    if not first:
        raise SiteError("no title: the first Markdown cell starts with `# `")
    text = LEAD.sub(lambda match: f"::: {{.lead}}\n{match[1]}\n:::", joined(first["source"]), count=1)
    current = f"\n\n```{{py:currentmodule}} {module}\n```\n" if module else ""
    first["source"] = TITLE.sub(lambda match: match[0] + current, text, count=1)


# ---- the whole book

def module_of(notebook: Path) -> str:
    "The module that a notebook exports, from its `default_exp`."
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if match := re.search(r"^#\|\s*default_exp\s+(\S+)", joined(cell["source"]), re.M):
            return f"sftbook.{match.group(1)}"
    return ""


def documented_symbols(books: dict[str, dict], modules: dict[str, str]) -> dict[str, str]:
    "name, and module.name, -> the anchor Sphinx gives it. A name two modules define is linked only with its module."
    found, twice = {}, set()
    for name, book in books.items():
        for cell in book["cells"]:
            for output in cell.get("outputs", []):
                match = re.match(r"::::\{py:\w+\} ([\w.]+)", joined(output.get("data", {}).get("text/markdown")))
                if not match:
                    continue
                module, symbol = modules[name], match.group(1)
                twice |= {symbol} if found.get(symbol, f"{module}.{symbol}") != f"{module}.{symbol}" else set()
                for key in (symbol, f"{module}.{symbol}", f"{module.removeprefix('sftbook.')}.{symbol}"):
                    found[key] = f"{module}.{symbol}"
    return {key: target for key, target in found.items() if key not in twice}


def strip_widgets(book: dict) -> None:
    "Without the widgets' JavaScript a saved widget shows its plain text."
    book["metadata"].pop("widgets", None)
    for cell in book["cells"]:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)


def write_if_changed(path: Path, text: str) -> None:
    "Sphinx reads again only what has changed."
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def convert(nbs: Path, processed: Path, target: Path, parts: Parts, widgets: bool = True) -> None:
    "Every chapter, from nbdev's processed notebooks to Sphinx's source folder."
    books = {name: json.loads((processed / name).read_text(encoding="utf-8")) for name in parts.notebooks}
    modules = {name: module_of(nbs / name) for name in parts.notebooks}
    symbols = documented_symbols(books, modules)
    for name, book in books.items():
        if not widgets:
            strip_widgets(book)
        try:
            head_page(book["cells"], modules[name])
            book["cells"] = convert_cells(book["cells"], symbols, name)
        except SiteError as error:
            raise SiteError(f"nbs/{name}: {error}") from error
    glossary.link_words(books)
    for name, book in books.items():
        if any("{footcite:" in cell["source"] for cell in book["cells"] if cell["cell_type"] == "markdown"):
            book["cells"].append(markdown_cell("## References\n\n```{footbibliography}\n```"))
        if name == "index.ipynb":
            book["cells"].append(markdown_cell(toctrees(parts)))
        book["metadata"] = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
                            "widgets": book["metadata"].get("widgets", {}), "language_info": {"name": "python"}}
        book.update(nbformat=4, nbformat_minor=4)
        for cell in book["cells"]:
            cell.pop("id", None)
        write_if_changed(target / name, json.dumps(book, ensure_ascii=False, indent=1, sort_keys=True))
    for old in set(target.rglob("*.ipynb")) - {target / name for name in parts.notebooks}:
        old.unlink()
    for extra in [p for p in nbs.rglob("*") if p.suffix in {".bib", ".png", ".svg", ".jpg"}]:
        (target / extra.relative_to(nbs)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(extra, target / extra.relative_to(nbs))
