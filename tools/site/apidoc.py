"""One documented symbol: signature, docstring and a table of parameters made from docments, as MyST for Sphinx's Python domain."""
import html
import inspect
import re

from fastcore.docments import DocmentTbl, MarkdownRenderer

LONG = re.compile(r"<factory>|<object object.*?>|<.*? at 0x[0-9a-f]+>")


def cell(text) -> str:
    "Text that stays as it is inside a Markdown table."
    text = html.escape(str(text), quote=False).replace("|", "\\|").replace("$", "\\$")
    pieces = re.split(r"(`[^`]*`)", text)  # a star means "times", except between backticks, where it is safe
    pieces[::2] = [piece.replace("*", "\\*") for piece in pieces[::2]]
    return re.sub(r"\s+", " ", "".join(pieces))


def code(text) -> str:
    text = re.sub(r"\s+", " ", str(text)).replace("|", "\\|").replace("`", "'")
    return f"`{text}`" if text else ""


def type_name(annotation) -> str:
    "A type as one would write it."
    if isinstance(annotation, str):
        return annotation
    return re.sub(r"\b(?:__main__|builtins|typing|pathlib|collections\.abc)\.", "", inspect.formatannotation(annotation))


def plain(annotation) -> tuple:
    "(type, what it means) of an option of a command, whose meaning stands in its annotation."
    if not hasattr(annotation, "__metadata__"):
        return annotation, inspect._empty
    said = [found.help for found in annotation.__metadata__ if getattr(found, "help", None)]
    return annotation.__origin__, said[0] if said else inspect._empty


def default_text(value) -> str:
    text = "..." if "<" in (text := repr(value)) and LONG.search(text) else text
    text = f"{value.__name__}" if inspect.isfunction(value) or inspect.isclass(value) else text
    return text if len(text) <= 40 else text[:37] + "..."


def signature_text(sig: inspect.Signature) -> str:
    "Names and defaults; types are in the table below it, where they can be read."
    shown = []
    for param in sig.parameters.values():
        if param.name in ("self", "cls"):
            continue
        default = param.default if param.default is param.empty else Raw(default_text(param.default))
        shown.append(param.replace(annotation=param.empty, default=default))
    return str(sig.replace(parameters=shown, return_annotation=sig.empty))


def method_doc(owner, name: str, func) -> str | None:
    "Its own docstring, or a parent's in this package. What torch says of every `forward` says nothing of this one."
    if func.__doc__:
        return inspect.cleandoc(func.__doc__)
    parents = [vars(c).get(name) for c in owner.__mro__[1:] if c.__module__.split(".")[0] == owner.__module__.split(".")[0]]
    return next((inspect.cleandoc(parent.__doc__) for parent in parents if getattr(parent, "__doc__", None)), None)


class Raw(str):
    "Text whose repr is itself."
    __repr__ = str.__str__


def unsafe(text: str) -> bool:
    "Would Sphinx fail to parse these arguments?"
    import ast
    try:
        ast.parse(f"def f{text}: pass")
        return False
    except SyntaxError:
        return True


class ApiBlock(MarkdownRenderer):
    "Renderer for nbdev's `show_doc`."

    def __init__(self, sym, **kwargs):
        try:
            super().__init__(sym, **kwargs)
        except NameError:  # the first Pythons 3.11 evaluate what a parent has for type checkers only
            sym.__signature__ = inspect.Signature()
            super().__init__(sym, **kwargs)

    def kind(self) -> str:
        if inspect.isclass(self.sym):
            return "exception" if issubclass(self.sym, BaseException) else "class"
        return "method" if "." in self.nm else "function"

    def has_parameters(self) -> bool:
        "An exception or a plain subclass that takes what its parent takes repeats nothing."
        return not inspect.isclass(self.sym) or "__init__" in vars(self.sym)

    def signature(self) -> str:
        if self.sig is None or not self.has_parameters():
            return ""
        text = signature_text(self.sig)
        return "(...)" if unsafe(text) else text

    def table(self) -> str:
        "Parameters, types and what they mean, where there is something to say."
        if not self.has_parameters():
            return ""
        docs = DocmentTbl(self.sym)
        rows = [(name, docs.dm[name]) for name in docs.params if name not in ("self", "cls") and name in docs.dm]
        rows = [(name, p) for name, p in rows if p["docment"] is not inspect._empty or p["anno"] is not inspect._empty]
        returned = docs.dm.get("return", {}) if not inspect.isclass(self.sym) else {}
        if not rows and not returned:
            return ""
        lines = [self._row(code(name), p) for name, p in rows]
        if returned and (returned.get("anno") not in (None, type(None), inspect._empty)):
            lines.append(self._row("*returns*", returned))
        if not lines:
            return ""
        return "\n".join([":::{div} api-parameters", "| | type | meaning |", "|---|---|---|", *lines, ":::"])

    def _row(self, name: str, p: dict) -> str:
        anno, said = plain(p.get("anno", inspect._empty))
        meaning = p.get("docment", inspect._empty)
        meaning = said if meaning in (None, inspect._empty) else meaning
        kind = "" if anno is inspect._empty else code(type_name(anno))
        return f"| {name} | {kind} | {'' if meaning in (None, inspect._empty) else cell(meaning)} |"

    def methods(self) -> str:
        "One line for each public method that says what it does."
        if not inspect.isclass(self.sym):
            return ""
        lines = []
        for name, member in vars(self.sym).items():
            func = getattr(member, "__func__", None) or getattr(member, "fget", None) or getattr(member, "func", None) or member
            doc = method_doc(self.sym, name, func) if callable(func) and not inspect.isclass(func) else None
            if name.startswith("_") or not doc:
                continue
            isproperty = isinstance(member, property) or hasattr(member, "func")
            args = "" if isproperty else signature_text(inspect.signature(func))
            lines.append(f"| {code(name + args)} | {cell(doc.splitlines()[0])} |")
        return "\n".join([":::{div} api-methods", "| method | meaning |", "|---|---|", *lines, ":::"]) if lines else ""

    def _repr_markdown_(self) -> str:
        inherited = inspect.isclass(self.sym) and "__doc__" not in vars(self.sym)
        generated = inspect.isclass(self.sym) and (self.sym.__doc__ or "").startswith(self.sym.__name__ + "(")  # a dataclass without one
        doc = "" if inherited or generated else (inspect.getdoc(self.sym) or "")
        parts = [f"::::{{py:{self.kind()}}} {self.nm}{self.signature()}", doc.replace("$", "\\$"), self.table(), self.methods(), "::::"]
        return "\n\n".join(part for part in parts if part)
