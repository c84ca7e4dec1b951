"""The public names of the package, their docstrings in parts, and their examples."""

from __future__ import annotations

import ast
import dataclasses
import doctest
import inspect
import re
import textwrap
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

from llamatelemetry import exceptions

PACKAGE = "llamatelemetry"
# The doors a reader comes in by; what their __all__ lists is public.
ROOMS = (
    "",
    ".server",
    ".api",
    ".api.client",
    ".api.gguf",
    ".api.multigpu",
    ".api.nccl",
    ".gguf",
    ".gpu",
    ".pool",
    ".setup",
    ".widgets",
    ".batch",
    ".bench",
    ".telemetry",
    ".exceptions",
    ".session",
    ".plots",
    ".diagnosis",
    ".placement",
)
# What is worked with most: here each method has an example of its own.
WITH_EXAMPLES_FOR_METHODS = (
    "LlamaCppClient",
    "ServerManager",
    "ServerPool",
    "GPUMonitor",
    "Session",
    "MemoryPlan",
    "GGUFParser",
    "BenchmarkResult",
    "Comparison",
    "Timeline",
    "Results",
)
DEMO_MODEL = Path(__file__).parents[2] / PACKAGE / "data" / "demo-q8_0.gguf"
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

_HEADING = re.compile(r"^([A-Z][a-z]+):$")
_ENTRY = re.compile(r"^ {4}((?:\*{0,2}\w+(?:, )?)+)(?: \([^)]*\))?:(.*)$")
_EXAMPLE_HEADINGS = ("Example", "Examples")


@dataclass(frozen=True)
class Public:
    """A public name where it is defined.

    Attributes:
        name: Its full name, from its home: ``llamatelemetry.session.Session``.
        value: The class, function or property itself.
        owner: The class it is a method of, where it is one.
    """

    name: str
    value: Any
    owner: type | None = None

    @property
    def short(self) -> str:
        """The name without the package's own."""
        return self.name.removeprefix(f"{PACKAGE}.")

    @cached_property
    def docstring(self) -> str:
        """Its docstring, cleaned; that of the method it overrides where it has none."""
        if self.owner is not None:
            return (
                inspect.getdoc(getattr(self.owner, self.short.rpartition(".")[2])) or ""
            )
        return inspect.cleandoc(self.value.__doc__ or "")

    @property
    def summary(self) -> str:
        """The docstring's first line."""
        return self.docstring.partition("\n")[0].strip()

    @cached_property
    def sections(self) -> dict[str, str]:
        """The text below each heading of the docstring."""
        return _sections(self.docstring)

    @property
    def home(self) -> str:
        """The module it is defined in, without the package's own name."""
        parent = self.short.rpartition(".")[0]
        if self.owner is not None:
            parent = parent.rpartition(".")[0]
        return parent

    @cached_property
    def examples(self) -> list[doctest.Example]:
        """The lines of its example."""
        text = "\n".join(self.sections.get(name, "") for name in _EXAMPLE_HEADINGS)
        return doctest.DocTestParser().get_examples(text)

    @property
    def skips(self) -> bool:
        """Whether some line of its example is not run."""
        return any(doctest.SKIP in item.options for item in self.examples)

    @cached_property
    def described(self) -> dict[str, str]:
        """What its docstring says of each parameter or attribute.

        For a class: those of its own bases too, for they are its own as well.
        """
        texts = [self.docstring]
        if inspect.isclass(self.value):
            texts = [inspect.cleandoc(base.__doc__ or "") for base in bases(self.value)]
        entries: dict[str, str] = {}
        for text in reversed(texts):
            sections = _sections(text)
            for heading in ("Attributes", "Args"):
                entries |= _entries(sections.get(heading, ""))
        return entries

    @property
    def parameters(self) -> list[str]:
        """What a caller can give it; nothing where a class has no own constructor."""
        if isinstance(self.value, property | cached_property):
            return []
        function = self.value
        if inspect.isclass(self.value):
            function = self.value.__init__
            generated = dataclasses.is_dataclass(self.value)
            if generated or not _is_ours(function):
                return []
        return [
            item.name
            for item in inspect.signature(function).parameters.values()
            if item.name not in ("self", "cls") and not item.name.startswith("_")
        ]

    @property
    def known(self) -> set[str]:
        """Every name that its docstring may describe."""
        names = {*self.parameters, *self.fields}
        if inspect.isclass(self.value):
            names |= set(dir(self.value))
            if issubclass(self.value, BaseException):
                names.add("message")  # every exception takes one
            if typing.is_typeddict(self.value):
                names |= self.value.__annotations__.keys()
            for base in bases(self.value):
                names |= set(re.findall(r"\bself\.(\w+)", source_of(base)))
                names |= _constructor_parameters(base)
        return names

    @property
    def fields(self) -> list[str]:
        """The public fields of a dataclass, a named tuple or a typed dictionary."""
        if not inspect.isclass(self.value):
            return []
        if dataclasses.is_dataclass(self.value):
            names = [item.name for item in dataclasses.fields(self.value)]
        elif typing.is_typeddict(self.value):
            names = _own_annotations(self.value)
        else:
            names = list(getattr(self.value, "_fields", ()))
        return [name for name in names if not name.startswith("_")]

    @property
    def raised(self) -> set[str]:
        """The errors of ours that its own code raises."""
        if not inspect.isclass(self.value):
            return _raised(self.value)
        return _raised(vars(self.value).get("__init__")) | _raised(
            vars(self.value).get("__post_init__")
        )


def public_names() -> list[Public]:
    """Return the classes and functions that the rooms list, each once, by its home.

    What else they list has no docstring of its own: aliases, literals, the version.
    """
    found = {}
    for room in ROOMS:
        module = import_module(PACKAGE + room)
        for name in module.__all__:
            value = getattr(module, name)
            if _is_ours(value):
                full = f"{value.__module__}.{value.__qualname__}"
                found[full] = Public(full, value)
    return sorted(found.values(), key=lambda item: item.name)


def public_methods() -> list[Public]:
    """Return the public methods and properties of the public classes."""
    found: dict[str, Public] = {}
    for public in public_names():
        if not inspect.isclass(public.value):
            continue
        for base in bases(public.value):
            for name, value in vars(base).items():
                function = getattr(value, "__func__", value)  # of a class method
                if name.startswith("_") or not _is_method(function):
                    continue
                full = f"{base.__module__}.{base.__qualname__}.{name}"
                found.setdefault(full, Public(full, function, public.value))
    return sorted(found.values(), key=lambda item: item.name)


def bases(kind: type) -> list[type]:
    """Return a class and those of ours it is made from."""
    return [base for base in getattr(kind, "__mro__", ()) if _is_ours(base)]


def source_of(value: Any) -> str:
    """Return the source of a class or function; nothing if it was generated."""
    try:
        return textwrap.dedent(inspect.getsource(value))
    except (OSError, TypeError):
        return ""


def run(public: Public, supplied: Mapping[str, Any]) -> str:
    """Run the examples of a docstring; return what went wrong, or nothing."""
    test = doctest.DocTestParser().get_doctest(
        public.docstring, dict(supplied), public.name, None, None
    )
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=OPTIONS, verbose=False)
    runner.run(test, out=said.append)
    return "".join(said)


def _own_annotations(kind: type) -> list[str]:
    """Return the keys of a typed dictionary's own; Python 3.11 keeps no base of it."""
    (body,) = ast.parse(source_of(kind)).body
    return [
        item.target.id
        for item in getattr(body, "body", ())
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    ]


def _constructor_parameters(kind: type) -> set[str]:
    made_by = [vars(kind).get(name) for name in ("__init__", "__new__")]
    functions = [inspect.unwrap(one) for one in made_by if inspect.isfunction(one)]
    return {name for one in functions for name in inspect.signature(one).parameters}


def _is_ours(value: object) -> bool:
    module = getattr(value, "__module__", None)
    is_ours = isinstance(module, str) and module.split(".")[0] == PACKAGE
    return is_ours and (inspect.isclass(value) or inspect.isfunction(value))


def _is_method(value: object) -> bool:
    return inspect.isfunction(value) or isinstance(value, property | cached_property)


def _sections(docstring: str) -> dict[str, str]:
    found: dict[str, list[str]] = {}
    heading = ""
    for line in docstring.splitlines():
        match = _HEADING.match(line)
        if match is not None:
            heading = match[1]
        elif line and not line.startswith(" "):
            heading = ""
        elif heading:
            found.setdefault(heading, []).append(line)
    return {name: "\n".join(lines) for name, lines in found.items()}


def _entries(section: str) -> dict[str, str]:
    """Return what a section says of each name; ``a, b: ...`` is about both."""
    found: dict[str, str] = {}
    names: list[str] = []
    for line in section.splitlines():
        match = _ENTRY.match(line)
        if match is not None:
            names = [name.strip("* ") for name in match[1].split(",")]
            found |= dict.fromkeys(names, match[2])
        else:
            found |= {name: f"{found[name]}\n{line}" for name in names}
    return found


def _raised(function: object) -> set[str]:
    """Return our errors in the ``raise`` statements of a function, helpers' too."""
    if isinstance(function, property):
        function = function.fget
    if isinstance(function, cached_property):
        function = function.func
    function = inspect.unwrap(function) if callable(function) else function
    if not inspect.isfunction(function) or not _is_ours(function):
        return set()
    tree = ast.parse(source_of(function))
    return {
        name
        for word in _raise_words(tree)
        for name in _error_names(word, function.__globals__)
    }


def _raise_words(node: ast.AST) -> Iterator[str]:
    """Yield what is raised, but for what the function itself may catch again."""
    for child in ast.iter_child_nodes(node):
        caught = isinstance(node, ast.Try) and node.handlers and child in node.body
        if not caught:
            yield from _raise_words(child)
    if isinstance(node, ast.Raise):
        called = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        if isinstance(called, ast.Name):
            yield called.id


def _error_names(word: str, names: Mapping[str, object]) -> Iterator[str]:
    """Yield an error by its name, or what a helper says that it makes."""
    if word in exceptions.__all__:
        yield word
    helper = names.get(word)
    if inspect.isfunction(helper):
        made = str(helper.__annotations__.get("return"))
        yield from (name for name in exceptions.__all__ if name == made)
