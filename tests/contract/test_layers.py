"""The architecture, held by tests: who may import whom, and what the kernel may not touch."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from tests.shared import REPOSITORY

ROOT = REPOSITORY / "daemon" / "ergo_capture"

#: Each layer may import from itself and from those before it.
LAYERS = (
    {"version", "errors", "units", "telemetry", "notifier", "backoff"},
    {"kernel"},
    {"protocol"},
    {"storage"},
    {"config"},
    {"journal"},
    {"bundle"},
    {"repair"},
    {"engine"},
    {"server"},
    {"client", "report"},
    {"cli"},
)
#: The package's own face, and the way in.
FREE = {"__init__", "__main__"}
#: The only places where anything is asynchronous; the command line runs what they hold.
ASYNC = {"engine", "server", "client", "cli"}
BANNED_IN_KERNEL = {
    "asyncio", "anyio", "datetime", "multiprocessing", "os", "pathlib", "random", "secrets", "socket",
    "structlog", "subprocess", "threading", "time", "uuid",
}  # fmt: skip

SOURCES = sorted(ROOT.rglob("*.py"))


def part_of(path: Path) -> str:
    """The layer's member a file belongs to: a package or a module right below the root."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports_of(tree: ast.AST) -> list[str]:
    """Every module that is imported anywhere in a file."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


def named(path: Path) -> str:
    """A file as the reports call it."""
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_a_file_imports_only_from_its_layer_and_those_above(path: Path) -> None:
    """The order of the design; a change of it is a change of this list."""
    rank = {name: number for number, names in enumerate(LAYERS) for name in names}
    part = part_of(path)
    if part in FREE:
        return
    for name in imports_of(ast.parse(path.read_text(encoding="utf-8"))):
        if name.startswith("ergo_capture."):
            other = name.split(".")[1]
            if other in rank:
                assert rank[other] <= rank[part], f"{named(path)} imports {name}"


@pytest.mark.parametrize("path", [path for path in SOURCES if part_of(path) == "kernel"], ids=named)
def test_the_kernel_is_pure(path: Path) -> None:
    """P11: no clock, no randomness, no I/O, no concurrency, and no order that depends on a hash."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for name in imports_of(tree):
        top = name.split(".")[0]
        if name != "ergo_capture.kernel.time" and not name.startswith("ergo_capture.kernel.time."):
            assert top not in BANNED_IN_KERNEL, f"{named(path)} imports {name}"
    for node in ast.walk(tree):
        assert not isinstance(node, ast.AsyncFunctionDef | ast.Await), f"{named(path)}:{node.lineno} is asynchronous"
        if isinstance(node, ast.For | ast.comprehension):
            assert not is_set(node.iter), f"{named(path)} iterates over a set"


def is_set(node: ast.expr) -> bool:
    """Whether an expression is a set on its face."""
    called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"set", "frozenset"}
    return called or isinstance(node, ast.Set | ast.SetComp)


@pytest.mark.parametrize("path", [path for path in SOURCES if part_of(path) not in ASYNC], ids=named)
def test_only_the_serving_side_is_asynchronous(path: Path) -> None:
    """Policy is synchronous; awaits carry out its answers."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        assert not isinstance(node, ast.AsyncFunctionDef), f"{named(path)}:{node.lineno}"


def test_the_source_root_is_not_a_package() -> None:
    """An ``__init__.py`` in ``daemon/`` would shadow another project's ``import daemon``."""
    assert not (REPOSITORY / "daemon" / "__init__.py").exists()


def test_the_top_level_holds_what_was_agreed() -> None:
    """Nothing but these, dotfiles, and a licence."""
    agreed = {"pyproject.toml", "daemon", "config", "tests", "systemd", "README.md", "LICENSE"}
    ignored = {"dist", "build"}
    found = {path.name for path in REPOSITORY.iterdir() if not path.name.startswith(".")}
    assert found - agreed - ignored == set()


def test_no_lock_file_records_where_packages_came_from() -> None:
    """Such files name hosts."""
    names = {"uv.lock", "poetry.lock", "pylock.toml", "Pipfile.lock"}
    assert [path for path in REPOSITORY.iterdir() if path.name in names] == []
