"""The shape of the code, as `docs/architecture.md` describes it, held by a machine."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "llamatelemetry"
MODULES = sorted(PACKAGE.rglob("*.py"))

# 0 facts, 1 doors and plain values, 2 domain, 3 services, 4 composition, 5 session,
# 6 work over a session, 7 faces.
FLOORS = {
    "__init__": 7,
    "__main__": 7,
    "exceptions": 0,
    "_units": 0,
    "_deadline": 0,
    "_files": 0,
    "_demo": 0,
    "_lazy": 0,
    "_connection": 1,
    "_exchange": 0,
    "_http": 1,
    "_address": 1,
    "_environment": 0,
    "_internet": 0,
    "_progress": 1,
    "_tables": 1,
    "gpu/__init__": 7,
    "gpu/_nvml": 1,
    "gpu/_readings": 1,
    "gpu/_capability": 2,
    "gpu/_own_processes": 2,
    "gpu/_samples": 2,
    "gpu/_run": 2,
    "gpu/_visible": 2,
    "gpu/monitor": 2,
    "gpu/inventory": 2,
    "server/_installed": 2,
    "server/probing": 2,
    "setup/_hub_errors": 1,
    "setup/_hub_cache": 1,
    "setup/_disk": 1,
    "setup/_checksums": 1,
    "setup/_archive": 1,
    "setup/_archive_bytes": 1,
    "setup/_archive_tar": 1,
    "setup/_archive_rules": 1,
    "setup/_manifest": 1,
    "setup/_together": 2,
    "setup/_download": 2,
    "setup/_wanted": 2,
    "setup/_search": 2,
    "setup/_fetch": 2,
    "setup/_pip": 2,
    "setup/_needs": 3,
    "setup/_machine": 3,
    "setup/_install": 3,
    "setup/_choose": 3,
    "setup/_sources": 3,
    "setup/_wheels": 3,
    "setup/_capsule_files": 2,
    "setup/_capsule_engine": 3,
    "setup/_capsule_wheels": 3,
    "setup/_setup_plan": 3,
    "setup/_prepare": 3,
    "setup/models": 3,
    "setup/engines": 3,
    "setup/recommend": 3,
    "setup/capsule": 3,
    "_nccl": 3,
    "_distributed": 3,
    "_rendezvous": 3,
    "_bandwidth": 3,
    "placement": 3,
    "_placement_view": 3,
    "_placement_ways": 3,
    "diagnosis": 4,
    "_setup_commands": 7,
    "setup/__init__": 7,
    "setup/_names": 1,
    "setup/_hub": 1,
    "setup/catalog": 1,
    "gguf/__init__": 7,
    "gguf/_source": 2,
    "gguf/_stored": 2,
    "gguf/_remote": 2,
    "gguf/_cursor": 2,
    "gguf/_values": 2,
    "gguf/arrays": 2,
    "gguf/_metadata": 2,
    "gguf/_tensors": 2,
    "gguf/_shards": 2,
    "gguf/_diagnosis": 2,
    "gguf/reader": 2,
    "gguf/quantization": 2,
    "gguf/_html": 2,
    "gguf/_summary": 2,
    "gguf/parser": 2,
    "gguf/_shape": 2,
    "gguf/_graph": 2,
    "gguf/_allocator": 2,
    "gguf/_build": 2,
    "gguf/_attention": 2,
    "gguf/_feed_forward": 2,
    "gguf/_recurrent": 2,
    "gguf/_model": 2,
    "gguf/_settings": 2,
    "gguf/_sizes": 2,
    "gguf/_cards": 2,
    "gguf/_places": 2,
    "gguf/_plan_notes": 2,
    "gguf/_plan_view": 2,
    "gguf/memory": 2,
    "gguf/_fitting": 2,
    "gguf/estimates": 2,
    "server/__init__": 7,
    "server/_linux": 1,
    "server/_process": 1,
    "server/_run_with_parent": 1,
    "server/_guard": 1,
    "server/state": 1,
    "server/status": 1,
    "server/_at_exit": 1,
    "server/_config_checks": 1,
    "server/config": 1,
    "server/events": 2,
    "server/failures": 2,
    "server/flags": 2,
    "server/parsing": 2,
    "server/engine": 2,
    "server/embedded": 2,
    "server/_interrupt": 2,
    "server/logs": 2,
    "server/_preflight": 3,
    "server/_launch": 3,
    "server/strays": 2,
    "server/_run": 3,
    "server/manager": 3,
    "api/__init__": 7,
    "api/_record": 2,
    "batch/__init__": 7,
    "batch/_together": 4,
    "batch/_ray_flow": 4,
    "batch/_answer": 4,
    "batch/_elsewhere": 4,
    "batch/_foreman": 2,
    "batch/_lines": 2,
    "batch/_pace": 2,
    "batch/_places": 2,
    "batch/_post": 6,
    "batch/_ray_actor": 4,
    "batch/_results_file": 2,
    "batch/_results_view": 3,
    "batch/_row_files": 2,
    "batch/_supply": 2,
    "batch/_templates": 2,
    "batch/_texts": 3,
    "batch/_vector_store": 3,
    "batch/_rows": 2,
    "batch/_asks": 3,
    "batch/_schema": 3,
    "batch/_store": 2,
    "batch/_kept": 2,
    "batch/_budget": 2,
    "batch/_order": 2,
    "batch/_estimate": 2,
    "batch/_bar": 2,
    "batch/_vectors": 1,
    "batch/_targets": 6,
    "batch/_crew": 6,
    "batch/_map": 6,
    "batch/results": 6,
    "batch/_embeddings": 6,
    "batch/_ray": 6,
    "bench/__init__": 7,
    "bench/_bar": 2,
    "bench/_prompts": 4,
    "bench/_ratios": 2,
    "bench/_stored": 2,
    "bench/_target": 6,
    "bench/_view": 3,
    "bench/comparison": 6,
    "bench/_metrics": 2,
    "bench/_load": 6,
    "bench/_energy": 6,
    "bench/results": 6,
    "bench/_benchmark": 6,
    "bench/_compare": 6,
    "telemetry/__init__": 7,
    "telemetry/_card_values": 3,
    "telemetry/_conventions": 2,
    "telemetry/_hush": 2,
    "telemetry/_joined": 4,
    "telemetry/_kept": 4,
    "telemetry/_picture": 4,
    "telemetry/_post": 2,
    "telemetry/_span_messages": 2,
    "telemetry/_spans": 3,
    "telemetry/_words": 4,
    "telemetry/_written": 4,
    "telemetry/timeline": 4,
    "telemetry/_entries": 4,
    "telemetry/_attribution": 2,
    "telemetry/_recording": 4,
    "telemetry/_slots": 2,
    "telemetry/_opentelemetry": 4,
    "telemetry/_scrape": 4,
    "_bench_command": 7,
    "_timeline_chart": 2,
    "_bench_chart": 2,
    "_batch_chart": 2,
    "api/_sse": 2,
    "api/responses": 2,
    "api/_parsing": 2,
    "api/_requests": 2,
    "api/_assembly": 2,
    "api/_errors": 2,
    "api/stream": 3,
    "api/_transport": 3,
    "api/_administration": 3,
    "api/_text": 3,
    "api/client": 3,
    "api/gguf": 7,
    "api/multigpu": 7,
    "api/nccl": 7,
    "pool/__init__": 7,
    "pool/_prefixes": 1,
    "pool/_groups": 4,
    "pool/_member": 4,
    "pool/_router": 4,
    "pool/_replies": 4,
    "pool/_probe": 4,
    "pool/client": 4,
    "pool/status": 2,
    "pool/server_pool": 4,
    "plots": 2,
    "_chart": 2,
    "_chart_look": 2,
    "session": 5,
    "_launch_steps": 5,
    "_launch_options": 5,
    "_launch_server": 5,
    "_launch_setup": 5,
    "_session_view": 5,
    "widgets/__init__": 7,
    "widgets/_answer": 7,
    "widgets/_bands": 7,
    "widgets/_blocks": 7,
    "widgets/_chat_controls": 7,
    "widgets/_chat_errors": 7,
    "widgets/_chat_face": 7,
    "widgets/_chat_follow": 7,
    "widgets/_chat_history": 7,
    "widgets/_chat_page": 7,
    "widgets/_chat_pictures": 7,
    "widgets/_chat_room": 7,
    "widgets/_chat_view": 7,
    "widgets/_chat_words": 7,
    "widgets/_generation": 7,
    "widgets/_growing": 7,
    "widgets/_images": 7,
    "widgets/_log_tail": 7,
    "widgets/_markdown": 7,
    "widgets/_markdown_file": 7,
    "widgets/_memory_sources": 7,
    "widgets/_messages": 7,
    "widgets/_model_choices": 7,
    "widgets/_outbox": 7,
    "widgets/_panel": 7,
    "widgets/_plan_preview": 7,
    "widgets/_server_options": 7,
    "widgets/_server_polls": 7,
    "widgets/_server_state": 7,
    "widgets/_server_view": 7,
    "widgets/_server_work": 7,
    "widgets/_ticking": 7,
    "widgets/_toolkit": 7,
    "widgets/_transcript": 7,
    "widgets/chat_panel": 7,
    "widgets/dashboard": 7,
    "widgets/server_panel": 7,
    "widgets/vram_panel": 7,
    "_conversation": 7,
    "_plan_advice": 7,
    "_plan_command": 7,
    "cli": 7,
}

# The one module that may import each of these.
DOORS = {
    "requests": "_connection",
    "urllib3": "_connection",
    "subprocess": "server/_process",
    "xllamacpp": "server/embedded",
    "huggingface_hub": "setup/_hub",
    "pynvml": "gpu/_nvml",
    "matplotlib": "plots",
    "markdown_it": "widgets/_markdown",
    "nh3": "widgets/_markdown",
    "torch": "_distributed",
    "tqdm": "_progress",
    "pandas": "_tables",
    "pyarrow": "_tables",
    "numpy": "batch/_vectors",
    "jsonschema": "batch/_schema",
    "referencing": "batch/_schema",
    "ray": "batch/_ray",
    "opentelemetry": "telemetry/_opentelemetry",
    "zstandard": "setup/_archive_bytes",
    "ipywidgets": "widgets/_toolkit",
    "IPython": "widgets/_toolkit",
}

# The one way up: a session shows itself, and what its start is doing, in a notebook.
# Inside functions only, so that nothing of it is loaded with the session.
UPWARD = ("session", "widgets")

MOST_MODULE_LINES = 300
MOST_FUNCTION_LINES = 40


def name_of(path: Path) -> str:
    """Return a module's name in the tables above."""
    return str(path.relative_to(PACKAGE).with_suffix(""))


def room_of(name: str) -> str:
    """Return the folder; all top modules are one room."""
    return name.rpartition("/")[0]


def imports_of(path: Path) -> Iterator[str]:
    """Yield the dotted names a module imports, but for type checking only."""
    tree = ast.parse(path.read_text())
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            skipped.update(inner for part in node.body for inner in ast.walk(part))
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def module_behind(dotted: str) -> str | None:
    """Return the module of this package that a dotted name leads to."""
    parts = dotted.split(".")
    if parts[0] != "llamatelemetry":
        return None
    for length in range(len(parts), 0, -1):
        place = PACKAGE.joinpath(*parts[1:length])
        if place.with_suffix(".py").is_file():
            return name_of(place.with_suffix(".py"))
        if (place / "__init__.py").is_file():
            return name_of(place / "__init__.py")
    return None


def test_every_module_has_a_floor() -> None:
    """The table lists the modules that exist, and no others."""
    assert sorted(map(name_of, MODULES)) == sorted(FLOORS)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_down_or_stay_in_the_room(path: Path) -> None:
    """A module imports lower floors and its own room only."""
    name = name_of(path)
    for dotted in imports_of(path):
        other = module_behind(dotted)
        if other in (None, "__init__"):  # the shop window is asked for the version
            continue
        assert other is not None
        if (name, room_of(other)) == UPWARD:
            continue
        assert room_of(other) == room_of(name) or FLOORS[other] < FLOORS[name], other


def test_the_way_up_is_taken_inside_functions_only() -> None:
    """Importing the session's module loads none of the widgets."""
    program = "import sys, llamatelemetry.session; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    loaded = done.stdout.split()
    assert "llamatelemetry.session" in loaded
    assert not {"llamatelemetry.widgets", "ipywidgets", "matplotlib"} & set(loaded)


def test_server_and_client_do_not_know_each_other() -> None:
    """Only composition and faces know both; the client may know the configuration."""
    for path in MODULES:
        name = name_of(path)
        others = {module_behind(dotted) or "" for dotted in imports_of(path)}
        if room_of(name) == "server":
            assert not any(room_of(other) == "api" for other in others), name
        if room_of(name) == "api":
            known = {other for other in others if room_of(other) == "server"}
            assert known <= {"server/config"}, name


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_each_library_has_one_door(path: Path) -> None:
    """A third-party library, or subprocess, is imported by its one module only."""
    for dotted in imports_of(path):
        library = dotted.split(".")[0]
        assert DOORS.get(library, name_of(path)) == name_of(path), library


def code_lines(path: Path) -> set[int]:
    """Return the numbers of the lines that hold code: no comments, no docstrings."""
    lines: set[int] = set()
    quiet = {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
        tokenize.ENCODING,
    }
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type not in quiet:
                lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(path.read_text())):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and is_docstring(body[0]):
            lines -= set(range(body[0].lineno, body[0].end_lineno + 1))
    return lines


def is_docstring(node: ast.AST) -> bool:
    """Whether a statement is nothing but a text."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_rooms_are_small(path: Path) -> None:
    """Modules and functions stay under their limits, signatures not counted."""
    lines = code_lines(path)
    tree = ast.parse(path.read_text())
    signatures = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            first = node.body[0].lineno
            own = lines & set(range(first, (node.end_lineno or first) + 1))
            assert len(own) < MOST_FUNCTION_LINES, node.name
            signatures += len(lines & set(range(node.lineno, first)))
    assert len(lines) - signatures < MOST_MODULE_LINES


def test_the_environment_is_never_written() -> None:
    """No module assigns to os.environ or calls what changes it."""
    for path in MODULES:
        text = path.read_text()
        for forbidden in ("environ[", "putenv", "environ.update", "environ.setdefault"):
            assert forbidden not in text.replace("os.environ[name] for", ""), path


IMPORT_PROBE = """
import sys
events = []
sys.addaudithook(lambda name, arguments: events.append((name, str(arguments))))
before = set(sys.modules)
import llamatelemetry
after = set(sys.modules)
dir(llamatelemetry), llamatelemetry.__version__
import json
print(json.dumps([sorted(after - before), events]))
"""


def test_the_import_touches_nothing() -> None:
    """`import llamatelemetry` loads no third-party module, opens no socket or file.

    Reading the package's own source is all the disk it touches.
    """
    done = subprocess.run(
        [sys.executable, "-B", "-c", IMPORT_PROBE],
        capture_output=True,
        text=True,
        check=True,
    )
    modules, events = json.loads(done.stdout)
    foreign = [
        name
        for name in modules
        if name.split(".")[0] not in {"llamatelemetry", *sys.stdlib_module_names}
    ]
    touched = [
        (name, arguments)
        for name, arguments in events
        if name.split(".")[0] in {"socket", "subprocess", "os", "shutil", "ctypes"}
        and name not in {"os.listdir", "os.scandir"}  # the import system looks around
    ]
    opened = [
        arguments
        for name, arguments in events
        if name == "open" and "llamatelemetry" not in arguments
    ]
    written = [
        arguments
        for name, arguments in events
        if name == "open" and ("'w" in arguments or "'a" in arguments)
    ]

    assert foreign == []
    assert touched == []
    assert [
        one for one in opened if "__pycache__" not in one and ".py" not in one
    ] == []
    assert written == []
    ours = {name for name in modules if name.startswith("llamatelemetry")}
    assert ours == {"llamatelemetry", "llamatelemetry._lazy"}


def test_the_shop_window_is_small_and_complete() -> None:
    """`__init__` has under 60 lines of code, and every name in it can be imported."""
    import llamatelemetry

    assert len(code_lines(PACKAGE / "__init__.py")) < 60
    for name in llamatelemetry.__all__:
        assert getattr(llamatelemetry, name) is not None
        assert name in dir(llamatelemetry)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = llamatelemetry.no_such_name  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "room",
    ["api", "batch", "bench", "gguf", "gpu", "server", "setup", "telemetry", "widgets"],
)
def test_a_room_has_the_names_that_it_lists(room: str) -> None:
    """Its lazy names can be had, `dir()` is its list, and others are refused."""
    module = import_module(f"llamatelemetry.{room}")

    assert dir(module) == sorted(module.__all__)
    for name in module.__all__:
        assert getattr(module, name) is vars(module)[name]
    refused = f"^module 'llamatelemetry.{room}' has no attribute 'no_such_name'$"
    with pytest.raises(AttributeError, match=refused):
        _ = module.no_such_name


def test_every_test_says_what_it_proves() -> None:
    """Each test function has a docstring that is a sentence."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                text = ast.get_docstring(node) or ""
                assert text.split("\n\n")[0].endswith("."), f"{path.name}: {node.name}"


def test_every_public_name_is_documented() -> None:
    """Modules, and public classes and functions, have docstrings."""
    for path in MODULES:
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), path
        for node in tree.body:
            if not isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                continue
            overload = "overload" in map(ast.unparse, node.decorator_list)
            if not node.name.startswith("_") and not overload:
                assert ast.get_docstring(node), f"{path.name}: {node.name}"


def test_the_architecture_document_lists_every_module() -> None:
    """docs/architecture.md names each module that exists."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    for path in MODULES:
        if path.name != "__init__.py":
            assert path.name in text, path.name
