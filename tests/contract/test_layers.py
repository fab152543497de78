"""The architecture, held by tests: who may import whom, how large a folder may be, what the kernel may not touch."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from tests.shared import REPOSITORY

ROOT = REPOSITORY / "daemon" / "ergo_capture"

#: The packages and modules right below the root, from the bottom up. Each may import its own layer and those below it.
LAYERS = (
    {
        "errors",
        "units",
        "version",
        "telemetry",
        "log_output",
        "plain_file",
        "pauses",
        "notifier",
        "backoff",
        "child_setup",
        "child_process",
        "socket_receiver",
        "signals",
        "extras",
    },
    {"kernel"},
    {"adapter"},
    {"protocol"},
    {"storage"},
    {"config"},
    {"journal"},
    {"bundle"},
    {"repair"},
    {"report", "engine", "egress", "client", "manual", "seal"},
    {"objects"},
    {"ship", "fleet"},
    {"server"},
    {"cli"},
)
#: The same inside ``server``. The factories, the publisher and the components lie beside ``ops``, which looks at them.
SERVER_LAYERS = (
    {"failures", "init_process"},
    {"commit"},
    {"session"},
    {"net"},
    {"ops", "factories", "publisher", "follower", "compose_worker", "shadow", "verify_worker", "components"},
    {"shutdown"},
    {"service"},
    {"process"},
)
#: The package's own face, and the way in.
FREE = {"__init__", "__main__", "library"}
#: The only places where anything is asynchronous; the command line runs what they hold.
ASYNC = {"engine", "egress", "server", "client", "ship", "cli", "pauses.py", "child_process.py", "socket_receiver.py"}
#: Most files in a folder, without ``__init__.py``.
MAX_FILES = 16
#: The folder with one file for each user-visible command.
COMMANDS = "cli/commands"
#: The packages on which a run's bytes depend.
PURE = {"kernel", "adapter"}
BANNED_IN_PURE = {
    "asyncio", "anyio", "datetime", "multiprocessing", "os", "pathlib", "random", "secrets", "socket",
    "structlog", "subprocess", "threading", "time", "uuid",
}  # fmt: skip

SOURCES = sorted(ROOT.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}


def module_of(path: Path) -> str:
    """Return a file's name as a module; a package's is its folder's."""
    parts = (ROOT.name, *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in SOURCES}


def relative(path: Path) -> str:
    """Return a file's path as the reports show it."""
    return path.relative_to(ROOT).as_posix()


def imports_of(path: Path) -> Iterator[str]:
    """Yield every module that a file imports, also inside functions and under TYPE_CHECKING."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{relative(path)}:{node.lineno} imports relatively"
            assert node.module
            # ``from package import module`` imports the module; any other name is the package's own.
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else node.module


def ranks(layers: tuple[set[str], ...]) -> dict[str, int]:
    """Return each name's layer, counted from the bottom."""
    return {name: rank for rank, names in enumerate(layers) for name in names}


def imports_upwards(path: Path, package: str, layers: tuple[set[str], ...]) -> list[str]:
    """Return what a file of ``package`` imports from higher layers of the same package."""
    rank, depth = ranks(layers), package.count(".") + 1
    own = module_of(path).split(".")[depth]
    return [
        name for name in imports_of(path) if name.startswith(f"{package}.") and rank[name.split(".")[depth]] > rank[own]
    ]


@pytest.mark.parametrize(
    "path", [path for path in SOURCES if path.parent != ROOT or path.stem not in FREE], ids=relative
)
def test_a_file_imports_only_from_its_layer_and_those_below(path: Path) -> None:
    """The order of packages is this file's; a change of it is a change of ``LAYERS``."""
    assert imports_upwards(path, "ergo_capture", LAYERS) == []


@pytest.mark.parametrize("path", sorted((ROOT / "server").rglob("*.py")), ids=relative)
def test_a_file_of_the_server_imports_only_from_its_layer_and_those_below(path: Path) -> None:
    """The network is above sessions, sessions are above commits, and the composition root is above all."""
    if path != ROOT / "server" / "__init__.py":
        assert imports_upwards(path, "ergo_capture.server", SERVER_LAYERS) == []


def test_no_two_modules_import_each_other_in_a_circle() -> None:
    """A circle that an import inside a function or under TYPE_CHECKING hides is one all the same."""
    graph = {name: {other for other in imports_of(path) if other in MODULES} - {name} for name, path in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_the_journal_knows_nothing_of_bundles() -> None:
    """Bundles are composed from the journal, never the other way round."""
    found = {
        relative(path): name
        for path in SOURCES
        if path.is_relative_to(ROOT / "journal")
        for name in imports_of(path)
        if name.startswith("ergo_capture.bundle")
    }
    assert found == {}


def test_a_folder_has_at_most_sixteen_files() -> None:
    """More than a person can look over has to be divided."""
    counts = Counter(relative(path.parent) for path in SOURCES if path.stem != "__init__")
    assert {folder: count for folder, count in counts.items() if count > MAX_FILES and folder != COMMANDS} == {}


@pytest.mark.parametrize("path", [path for path in SOURCES if path.relative_to(ROOT).parts[0] in PURE], ids=relative)
def test_the_kernel_and_adapters_are_pure(path: Path) -> None:
    """P11: no clock, no randomness, no I/O, no concurrency, and no order that depends on a hash."""
    for name in imports_of(path):
        assert name.split(".")[0] not in BANNED_IN_PURE, f"{relative(path)} imports {name}"
    for node in ast.walk(TREES[path]):
        assert not isinstance(node, ast.AsyncFunctionDef | ast.Await), f"{relative(path)}:{node.lineno} is asynchronous"
        if isinstance(node, ast.For | ast.comprehension):
            assert not is_set(node.iter), f"{relative(path)} iterates over a set"


def is_set(node: ast.expr) -> bool:
    """Return whether an expression is a set by its form."""
    called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"set", "frozenset"}
    return called or isinstance(node, ast.Set | ast.SetComp)


def is_async(path: Path) -> bool:
    """Return whether a file belongs to a package that may be asynchronous."""
    return path.relative_to(ROOT).parts[0] in ASYNC


@pytest.mark.parametrize("path", [path for path in SOURCES if not is_async(path)], ids=relative)
def test_only_the_serving_side_is_asynchronous(path: Path) -> None:
    """Policy is synchronous; awaits carry out its answers."""
    for node in ast.walk(TREES[path]):
        assert not isinstance(node, ast.AsyncFunctionDef), f"{relative(path)}:{node.lineno}"


def test_the_source_root_is_not_a_package() -> None:
    """An ``__init__.py`` in ``daemon/`` would shadow another project's ``import daemon``."""
    assert not (REPOSITORY / "daemon" / "__init__.py").exists()


def test_the_top_level_holds_only_what_was_agreed() -> None:
    """Nothing but these files and directories, and dotfiles."""
    agreed = {"pyproject.toml", "daemon", "config", "tests", "systemd", "README.md", "LICENSE"}
    ignored = {"dist", "build"}
    found = {path.name for path in REPOSITORY.iterdir() if not path.name.startswith(".")}
    assert found - agreed - ignored == set()


def test_no_lock_file_records_where_packages_came_from() -> None:
    """Such files name hosts."""
    names = {"uv.lock", "poetry.lock", "pylock.toml", "Pipfile.lock"}
    assert [path for path in REPOSITORY.iterdir() if path.name in names] == []


@pytest.mark.parametrize("folder", ["daemon", "tests", "config", "systemd", ".ci"])
def test_a_comment_states_a_fact(folder: str) -> None:
    """A comment that begins with a question word leaves the reader to find the fact; texts of settings may."""
    words = "Why|Whoever" if folder == "config" else "Why|Who|Whoever|Whom|What|Whatever"
    found = [
        f"{path.relative_to(REPOSITORY)}:{number}"
        for path in sorted((REPOSITORY / folder).rglob("*"))
        if path.suffix in {".py", ".toml", ".service", ".socket", ".conf"} or path.name == "run"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(rf"#:? ({words})\b", line)
    ]
    assert found == []
