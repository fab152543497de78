"""The packages that adapters need, and nothing else."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ergo_capture.adapter import AdapterError, load_adapter
from ergo_capture.adapter.schemas import PayloadSchema


def test_importing_adapters_imports_neither_package() -> None:
    """Start-up does not pay for what is not used."""
    code = "import sys, ergo_capture.adapter; assert not {'yaml', 'jsonschema_rs'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("package", ["yaml", "jsonschema_rs"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    """The extra is named, not only the package."""
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(AdapterError) as caught:
        load_adapter("kind: adapter\n") if package == "yaml" else PayloadSchema({})
    assert caught.value.code == "extra_missing"
    assert package in caught.value.message
    assert "pip install 'ergo-capture[adapter]'" in caught.value.fix
    assert caught.value.exit_code == 78
