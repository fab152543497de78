"""Run mutmut over one package: change one thing in the code at a time, and see whether a test fails.

mutmut takes modules below its working directory, and one selection of tests for all of them. So each package has a directory
of its own, build/mutants/PACKAGE, with links to the code and the tests, and a configuration made from pyproject.toml: only the tests
of a package run for it, and the results of several packages stand side by side. Results are kept: an interrupted run goes on
where it ended, and a changed function loses only its own.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import fnmatch
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SOURCE = "daemon/ergo_capture"
NOT_RUN = "not run"
LEFT = {"survived", "no test"}
MEANING = {
    None: NOT_RUN,
    0: "survived",
    1: "killed",
    3: "killed",
    5: "no test",
    33: "no test",
    -signal.SIGXCPU: "timeout",
}


def main() -> int:
    """Run the mutants of a package, or print those that survived.

    Returns:
        0, or the exit code of mutmut, which is 1 when the tests fail without a mutant.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description="Run mutmut over one package.")
    parser.add_argument(
        "package", nargs="?", help="a folder or file of ergo_capture: kernel, server/commit, notifier.py"
    )
    parser.add_argument(
        "--since", metavar="COMMIT", help="only files that changed since COMMIT, without PACKAGE anywhere"
    )
    parser.add_argument("--tests", nargs="+", metavar="PATH", help="run these tests, not those of pyproject.toml")
    parser.add_argument(
        "--only", metavar="PATTERN", default="*", help="only mutants with such a name: '*.replay.x_diff*'"
    )
    parser.add_argument("--sample", type=int, metavar="N", help="only N mutants at random, the same ones every time")
    parser.add_argument("--again", action="store_true", help="run the survivors once more, and no others")
    parser.add_argument("--fresh", action="store_true", help="as --again, each in a new process; see the manual")
    parser.add_argument("--show", action="store_true", help="run nothing, and print the survivors as diffs")
    arguments = parser.parse_args()
    files = changed(arguments.since) if arguments.since else None
    if arguments.package is None and files is None:
        parser.error("name a package, or a commit with --since")
    packages = (
        [arguments.package.strip("/")] if arguments.package else sorted({file.split("/")[0] for file in files or ()})
    )
    failed = 0
    for package in packages:
        directory = ROOT / "build/mutants" / package.replace("/", "-").removesuffix(".py")
        if not arguments.show:
            prepare(directory, package, arguments.tests)
        with contextlib.chdir(directory):
            # To show is safe while another process runs mutants: nothing is written.
            names = sorted(results()) if arguments.show else generated()
            names = selected(names, arguments.only, files, arguments.sample)
            if arguments.show:
                show(names)
            elif arguments.fresh:
                run_fresh([name for name in names if meaning(results()[name]) in LEFT])
            else:
                wanted = LEFT if arguments.again else {NOT_RUN}
                failed |= run([name for name in names if meaning(results()[name]) in wanted])
            count(package, names)
    return failed


def prepare(directory: Path, package: str, tests: Sequence[str] | None) -> None:
    """Make the directory ready in which mutmut runs for a package.

    Raises:
        SystemExit: There is no such package.
    """
    path = ROOT / SOURCE / package
    if not path.exists():
        raise SystemExit(f"{SOURCE}/{package} does not exist")
    directory.mkdir(parents=True, exist_ok=True)
    for name, target in {"ergo_capture": SOURCE, "tests": "tests", "config": "config", "systemd": "systemd"}.items():
        if not (directory / name).is_symlink():
            (directory / name).symlink_to(ROOT / target)
    # Tests that were renamed or removed must not stay.
    for copy in (directory / "mutants/tests").rglob("*.py"):
        if not (directory / copy.relative_to(directory / "mutants")).exists():
            copy.unlink()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    settings = project["tool"]["mutmut"]
    of_packages = settings.pop("tests")
    of_package = tests or of_packages.get(package) or [f"tests/{package.split('/', maxsplit=1)[0]}"]
    settings |= {
        "source_paths": ["ergo_capture"],
        "only_mutate": [f"ergo_capture/{package}" + ("/*" if path.is_dir() else "")],
        "pytest_add_cli_args_test_selection": of_package,
    }
    pytest = project["tool"]["pytest"]["ini_options"] | {"pythonpath": ["."]}
    (directory / "pyproject.toml").write_text(toml("tool.mutmut", settings) + toml("tool.pytest.ini_options", pytest))


def toml(table: str, settings: Mapping[str, Any]) -> str:
    """Return a table of strings, numbers and lists as TOML, which writes them as JSON does."""
    return f"[{table}]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items())


def generated() -> list[str]:
    """Write the mutants of what changed, and return the names of all."""
    from mutmut.__main__ import create_mutants
    from mutmut.configuration import reset_config
    from mutmut.utils.file_utils import copy_also_copy_files, copy_src_dir

    reset_config()  # it is that of the package before
    for meta in Path("mutants").rglob("*.meta"):
        copy = meta.with_suffix(".copy")
        try:
            json.loads(meta.read_text())
            shutil.copy(meta, copy)
        except ValueError:  # mutmut was killed while it wrote
            shutil.copy(copy, meta)
    with contextlib.redirect_stdout(None):
        copy_src_dir()
        copy_also_copy_files()
        create_mutants(os.cpu_count() or 1)
    return sorted(results())


def results() -> dict[str, int | None]:
    """Return what is known of each mutant: pytest's exit code, a number of mutmut's own, or None."""
    metas = Path("mutants").rglob("*.meta")
    return {name: code for meta in metas for name, code in json.loads(meta.read_text())["exit_code_by_key"].items()}


def run(names: Sequence[str]) -> int:
    """Have mutmut run mutants, with its progress on a terminal; elsewhere its output is printed when it fails.

    Returns:
        The exit code of mutmut.
    """
    if not names:
        return 0
    # The command beside this interpreter, which need not be that of an activated environment. The path is for commands
    # that tests start.
    command = [str(Path(sys.executable).with_name("mutmut")), "run", *names]
    output = None if sys.stdout.isatty() else subprocess.PIPE
    environment = os.environ | {"PYTHONPATH": str(Path("mutants").resolve()), "TEST_PATIENCE": "6"}
    done = subprocess.run(command, check=False, env=environment, stdout=output, text=True)
    if done.returncode and done.stdout:
        print(done.stdout.replace("\r", "\n")[-10_000:])
    return done.returncode


def run_fresh(names: Sequence[str]) -> None:
    """Run each mutant in a process of its own, in which it is there while modules are imported."""
    settings = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["mutmut"]
    arguments = [*settings["pytest_add_cli_args"], *settings["pytest_add_cli_args_test_selection"]]

    def run_one(name: str) -> int:
        command = [sys.executable, "-m", "pytest", "-x", "-q", *arguments]
        environment = os.environ | {"PYTHONPATH": str(Path("mutants").resolve()), "MUTANT_UNDER_TEST": name}
        return subprocess.run(command, check=False, cwd="mutants", env=environment, capture_output=True).returncode

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for name, code in zip(names, pool.map(run_one, names), strict=True):
            for meta in Path("mutants").rglob("*.meta"):
                known = json.loads(meta.read_text())
                if name in known["exit_code_by_key"]:
                    # Tests that cannot be collected are killed by it: pytest ends with 2 or 4.
                    known["exit_code_by_key"][name] = code and 1
                    meta.write_text(json.dumps(known))


def meaning(code: int | None) -> str:
    """Return a result in words: survived, killed, no test, timeout, crashed (by recursion, say), or not run."""
    return MEANING.get(code, "crashed")


def changed(since: str) -> list[str]:
    """Return the files of the package that changed since a commit, relative to it."""
    command = [
        "git",
        "-C",
        str(ROOT),
        "diff",
        "--name-only",
        "--diff-filter=d",
        "--relative=" + SOURCE,
        since,
        "--",
        "*.py",
    ]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


def selected(names: Sequence[str], pattern: str, files: Sequence[str] | None, sample: int | None) -> list[str]:
    """Return the mutants to look at, in an order that stays when others come and go."""
    modules = [file.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for file in files or ()]
    beginnings = "ergo_capture." if files is None else tuple(f"ergo_capture.{module}.x" for module in modules)
    chosen = [name for name in names if fnmatch.fnmatch(name, pattern) and name.startswith(beginnings)]
    return sorted(chosen, key=lambda name: hashlib.sha256(name.encode()).digest())[:sample]


def show(names: Sequence[str]) -> None:
    """Print each survivor as a diff."""
    from mutmut.mutation.diff_apply import get_diff_for_mutant

    known = results()
    for name in sorted(names):
        if meaning(known[name]) in LEFT:
            print(f"# {name}: {meaning(known[name])}\n{get_diff_for_mutant(name)}\n")


def count(package: str, names: Sequence[str]) -> None:
    """Print how many of the mutants have which result."""
    known = results()
    counts = collections.Counter(meaning(known[name]) for name in names)
    print(f"{package}: {len(names)} mutants, " + ", ".join(f"{number} {word}" for word, number in counts.most_common()))


if __name__ == "__main__":
    sys.exit(main())
