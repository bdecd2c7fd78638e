"""The package as users see it: public names, types, what an import costs, what documents promise."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from importlib import metadata, resources
from pathlib import Path

import pytest

import bnfold

ROOT = Path(__file__).parent.parent


def test_public_names_load_on_first_use() -> None:
    code = (
        "import sys, bnfold\n"
        "assert not {'onnx', 'numpy', 'onnxruntime', 'typer'} & set(sys.modules), 'import bnfold is not lazy'\n"
        "for name in bnfold.__all__: getattr(bnfold, name)\n"
        "assert 'onnxruntime' not in sys.modules, 'the API imports onnxruntime'\n"
        "assert callable(bnfold.verify) and callable(bnfold.bench)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_functions_stay_functions_when_their_packages_are_imported() -> None:
    code = (
        "import bnfold, bnfold.verify.report, bnfold.bench.report\n"
        "assert callable(bnfold.verify), 'bnfold.verify is a module'\n"
        "assert callable(bnfold.bench), 'bnfold.bench is a module'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'unfold'"):
        bnfold.unfold  # noqa: B018  # the access is the test
    assert set(bnfold.__all__) == set(dir(bnfold))


def test_typed() -> None:
    assert resources.files("bnfold").joinpath("py.typed").is_file()


def test_version_is_the_package_s() -> None:
    assert metadata.version("bnfold") == bnfold.__version__
    assert f"## {bnfold.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_package_is_shipped() -> None:
    listed = set(re.findall(r'"(bnfold[\w.]*)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8")))
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "bnfold").rglob("__init__.py")}
    assert found <= listed


def test_a_page_per_refusal_code() -> None:
    folder = ROOT / "docs" / "codes"
    pages = runpy.run_path(str(folder / "make.py"))["pages"]()
    written = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.md")}
    assert written == pages, "run: python docs/codes/make.py"


# -- documents ---------------------------------------------------------------------------------------------------------


def documents() -> list[Path]:
    return [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "models").glob("*.md")]


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in target and not target.startswith("mailto:"):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_readme_s_test_command_is_what_the_checks_run() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    command = next(line for line in readme.splitlines() if "-m pytest" in line).strip()
    checks = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert command in [line.strip() for line in checks.splitlines()]


def test_readme_s_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    code = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)[0]
    source = (ROOT / "models" / "digits_preact.onnx").read_bytes()
    (tmp_path / "model.onnx").write_bytes(source)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert (tmp_path / "folded.onnx").exists()
