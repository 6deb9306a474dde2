"""Which code printed an output: a notebook's own, and all of the package that it reaches.

The name of that code is made from syntax trees. Comments, docstrings, annotations and line breaks
do not count, nor does the module in which a definition stands: code that is only laid out anew or
moved keeps its name. What a notebook reaches are the definitions it imports from the package and,
one after the other, all that their names stand for. Where a name could mean two things, both are
taken.
"""
import ast
import hashlib
import re
from collections import defaultdict
from functools import cached_property
from pathlib import Path

PACKAGE = "sftbook"
EVERYTHING = "*"
# the directives that change outputs
DIRECTIVES = re.compile(r"^#\|\s*(eval:\s*false|slow|gpu)\s*$", re.MULTILINE)
MAGIC = re.compile(r"^\s*[%!].*$", re.MULTILINE)


def digest(text, length=16):
    return hashlib.sha256(text.encode()).hexdigest()[:length]


# ---- a syntax tree as text, without what a reader alone sees

def is_command(node):
    "A command's docstring is its help, which is printed."
    called = [d.func for d in getattr(node, "decorator_list", []) if isinstance(d, ast.Call)]
    return any(isinstance(f, ast.Attribute) and f.attr == "command" for f in called)


def is_text(statement):
    "A statement that is a text alone: a docstring, where it comes first."
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def without_docstring(node):
    has_docstring = node.body and is_text(node.body[0]) and not is_command(node)
    return node.body[1:] if has_docstring else node.body


def joined_text(values):
    "The parts of an f-string; text in several pieces is one piece."
    parts = []
    for value in values:
        text = value.value if isinstance(value, ast.Constant) else None
        if text is not None and parts and isinstance(parts[-1], str):
            parts[-1] += text
        else:
            parts.append(value if text is None else text)
    return [ast.Constant(p) if isinstance(p, str) else p for p in parts if p != ""]


def counts(annotation):
    "Annotations are for readers, save those that call something, as a command's options do."
    return any(isinstance(node, ast.Call) for node in ast.walk(annotation))


def plain(node):
    "A syntax tree as text, the same under every Python."
    if isinstance(node, list):
        return "[" + ",".join(map(plain, node)) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    if isinstance(node, ast.Constant):
        return f"{type(node.value).__name__}:{node.value!r}"
    if isinstance(node, ast.ImportFrom) and (node.level or in_package(node.module)):
        return f"{PACKAGE} {[(a.name, a.asname) for a in node.names]}"  # names may move
    fields = {}
    for name, value in ast.iter_fields(node):
        if name in ("ctx", "kind", "type_comment", "lineno") or value is None or value == []:
            continue
        if name in ("annotation", "returns") and not counts(value):
            continue
        fields[name] = value
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)):
        fields["body"] = without_docstring(node)
    if isinstance(node, ast.JoinedStr):
        fields["values"] = joined_text(node.values)
    return f"{type(node).__name__}({','.join(f'{k}={plain(v)}' for k, v in fields.items())})"


# ---- what a tree names

def in_package(module):
    return module is not None and (module == PACKAGE or module.startswith(PACKAGE + "."))


def absolute(node, module, is_folder):
    "The module that an import names, as an absolute name."
    if not node.level:
        return node.module
    parents = module.split(".")
    parents = parents[:len(parents) - node.level + is_folder]
    return ".".join([*parents, *([node.module] if node.module else [])])


def package_imports(tree, module="", is_folder=False):
    "(module, name) of everything that a tree imports from the package; the name may be EVERYTHING."
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if in_package(alias.name):
                    yield alias.name, EVERYTHING, alias.asname or alias.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            origin = absolute(node, module, is_folder)
            if in_package(origin):
                for alias in node.names:
                    yield origin, alias.name, alias.asname or alias.name


def used_names(tree):
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def named_modules(tree):
    "Modules of the package that a text names, as `import_module` and `python -m` take them."
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)
            and isinstance(node.value, str) and re.fullmatch(rf"{PACKAGE}(\.\w+)+", node.value)}


# ---- the package

class Module:
    "The definitions of a file: name -> statements, and what is done whenever it is imported."

    def __init__(self, name, tree, is_folder=False):
        self.name, self.is_folder = name, is_folder
        self.definitions, self.always, self.imported = defaultdict(list), [], {}
        self.foreign = set()
        for statement in tree.body:
            if not is_text(statement):
                self.add(statement)
        for statement in tree.body:
            self.add_registered(statement)

    def add_registered(self, statement):
        "A decorator or base class of the package's own may list what is made with it."
        makers = [*getattr(statement, "decorator_list", []), *getattr(statement, "bases", [])]
        for name in used_names(ast.Module(makers, [])) - self.foreign:
            if name in self.imported:
                self.always.append(statement)
            elif name in self.definitions:
                self.definitions[name].append(statement)

    def add(self, statement):
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            for origin, name, known_as in package_imports(statement, self.name, self.is_folder):
                self.imported[known_as] = (origin, name)
            self.add_foreign(statement)
            return
        names = set(self.names(statement))
        if names == {"__all__"}:
            return
        for name in names:
            self.definitions[name].append(statement)
        if not names or not isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef,
                                                   ast.ClassDef, ast.Assign, ast.AnnAssign)):
            self.always.append(statement)

    def add_foreign(self, statement):
        "Each name from another package is a definition of its own."
        origin = getattr(statement, "module", None)
        if getattr(statement, "level", 0) or in_package(origin):
            return
        for alias in statement.names:
            if not in_package(alias.name):
                one = [ast.alias(alias.name, alias.asname)]
                made = ast.Import(one) if origin is None else ast.ImportFrom(origin, one, 0)
                known_as = alias.asname or alias.name.split(".")[0]
                self.definitions[known_as].append(made)
                self.foreign.add(known_as)

    def names(self, statement):
        "The names that a statement defines or changes."
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield statement.name
        elif isinstance(statement, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
            targets = getattr(statement, "targets", None) or [statement.target]
            for target in targets:  # X[...] = ... and X.y = ... change X
                yield from used_names(target)
        elif isinstance(statement, (ast.If, ast.Try, ast.With, ast.For, ast.While)):
            for node in ast.walk(statement):
                if node is not statement and isinstance(node, ast.stmt):
                    yield from self.names(node)


class Package:
    "All modules of a package in a folder."

    def __init__(self, root):
        self.root = Path(root)

    @cached_property
    def modules(self):
        found = {}
        for path in sorted((self.root / PACKAGE).rglob("*.py")):
            if path.name == "_modidx.py":
                continue
            parts = path.relative_to(self.root).with_suffix("").parts
            is_folder = parts[-1] == "__init__"
            name = ".".join(parts[:-1] if is_folder else parts)
            found[name] = Module(name, ast.parse(path.read_text(encoding="utf-8")), is_folder)
        return found

    @cached_property
    def plain_texts(self):
        return {}

    @cached_property
    def links(self):
        return {}

    def reached(self, tree):
        "{(module, name): statements} of all that a tree reaches, directly or not."
        found, waiting = {}, [(origin, name) for origin, name, _ in package_imports(tree)]
        waiting += [(module, EVERYTHING) for module in named_modules(tree)]
        while waiting:
            for module, name in self.resolve(*waiting.pop()):
                if (module, name) not in found:
                    found[module, name] = self.statements(module, name)
                    for statement in found[module, name]:
                        waiting += self.following(module, statement)
        return found

    def resolve(self, origin, name):
        "The (module, name) keys that an import stands for; a module's own start is the name ''."
        if f"{origin}.{name}" in self.modules:  # from sftbook import core
            origin, name = f"{origin}.{name}", EVERYTHING
        module = self.modules.get(origin)
        if module is None:
            return
        parts = origin.split(".")
        for i in range(1, len(parts) + 1):  # a module's packages are imported before it
            yield ".".join(parts[:i]), ""
        if name == EVERYTHING:
            for known in module.definitions:
                yield origin, known
            for other, what in module.imported.values():
                yield from [] if what == EVERYTHING else self.resolve(other, what)
        elif name in module.definitions:
            yield origin, name
        if name in module.imported:  # taken from where it is defined
            yield from self.resolve(*module.imported[name])

    def statements(self, module, name):
        if name == "":
            return self.modules[module].always if module in self.modules else []
        return self.modules[module].definitions[name]

    def following(self, module, statement):
        "What a statement of a module leads to, looked for once and not once a notebook."
        key = module, id(statement)
        if key not in self.links:
            self.links[key] = list(self.find_following(module, statement))
        return self.links[key]

    def find_following(self, module, statement):
        home = self.modules[module]
        for name in used_names(statement):
            if name in home.definitions:
                yield module, name
            if name in home.imported:
                yield home.imported[name]
        for origin, name, _ in package_imports(statement, module, home.is_folder):
            yield origin, name
        for named in named_modules(statement):
            yield named, EVERYTHING

    def text(self, statement):
        if id(statement) not in self.plain_texts:
            self.plain_texts[id(statement)] = digest(plain(statement))
        return self.plain_texts[id(statement)]

    def name(self, sources, folder=None):
        """{"code": the name of all the code, "parts": {part: its name}} of a notebook's cells.

        `folder` is where the notebook stands: a file beside it that its code names counts too.
        """
        trees = [notebook_tree(source) for source in sources]
        whole = ast.Module([statement for tree in trees for statement in tree.body], [])
        parts = defaultdict(set)
        for (module, name), statements in self.reached(whole).items():
            parts[module] |= {f"{name} {self.text(statement)}" for statement in statements}
        own = [cell_text(source, tree) for source, tree in zip(sources, trees)]
        parts["the notebook"] = {"\0".join(text for text in own if text)}
        parts["files"] = {digest(path.read_text(encoding="utf-8"))
                          for path in named_files(whole, folder)}
        everything = sorted({line for lines in parts.values() for line in lines})
        short = {part: digest("\n".join(sorted(parts[part])), 6) for part in sorted(parts)
                 if parts[part]}
        return {"code": digest("\n".join(everything)), "parts": short}


# ---- a notebook

def notebook_tree(source):
    "A cell's tree; a line for the shell that names the package reaches its command."
    shell = "\n".join(MAGIC.findall(source))
    if source.startswith("%%"):
        shell, source = source, ""
    tree = ast.parse(MAGIC.sub("", source))
    if re.search(rf"\b{PACKAGE}\b", shell):
        tree.body.append(ast.Expr(ast.Constant(f"{PACKAGE}.cli")))
    return tree


def cell_text(source, tree):
    "A cell as text: its tree, directives that change what is run, a semicolon that hides a value."
    if not tree.body and not MAGIC.search(source):
        return ""
    special = [*DIRECTIVES.findall(source), *MAGIC.findall(source)]
    return plain(tree.body) + repr(special) + ";" * source.rstrip().endswith(";")


def named_files(tree, folder):
    "Text files beside the notebook which its code names."
    if folder is None:
        return []
    names = {node.value for node in ast.walk(tree)
             if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    named = {name for name in names if re.fullmatch(r"[\w./-]+\.(json|txt|csv|tsv|yml)", name)}
    return sorted(folder / name for name in named if (folder / name).is_file())
