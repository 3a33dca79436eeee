"""Documentation is true where a machine can tell: commands parse, links lead somewhere, dependencies have a line."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from tokenmill.cli import main as cli
from tokenmill.cli.main import TABLE, Group, Verb

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHELL_BLOCK = re.compile(r"^```sh\n(.*?)^```", re.M | re.S)
LINK = re.compile(r"\]\((?!https?:)([^)#]+)[^)]*\)")


def commands() -> list[tuple[str, str]]:
    """(page, command) of every line in a shell block that calls us, also behind a pipe."""
    found = []
    for page in PAGES:
        for block in SHELL_BLOCK.findall(page.read_text(encoding="utf-8")):
            for line in block.replace("\\\n", " ").splitlines():
                last = line.split(" | ")[-1].strip().removeprefix("$ ")
                if last.startswith(("tokenmill ", "./run ")):
                    found.append((page.name, last))
    return found


@pytest.mark.parametrize(("page", "command"), commands())
def test_a_command_parses(page: str, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    program, *words = shlex.split(command, comments=True)
    script = (ROOT / "run").read_text(encoding="utf-8")
    if program == "./run" and re.search(rf"^(\w+ \| )*{words[0]}( \| [-\w]+)*\)", script, re.M):
        return
    entry = cli.find(TABLE, words[0])
    name, rest = words[0], words[1:]
    if isinstance(entry, Group):
        name, entry, rest = f"{name} {rest[0]}", cli.find(entry.verbs, rest[0]), rest[1:]
    assert isinstance(entry, Verb), f"{page} names {command!r}, which is not served"
    cli.parse(entry, f"tokenmill {name}", rest)
    assert not capsys.readouterr().err, f"{page}: {command!r} is told to be old"


def test_there_are_commands_to_test() -> None:
    assert {"README.md", "getting-started.md"} <= {page for page, _ in commands()} and len(commands()) > 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_dependency_has_a_line() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(d for group in project["optional-dependencies"].values() for d in group)]
    names = {re.split(r"[\s\[<>=;]", text)[0].lower() for text in wanted} - {"tokenmill"}
    page = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8").lower()
    assert not {name for name in names if not re.search(rf"\b{re.escape(name)}\b", page)}


def test_the_model_page_has_a_good_row_for_every_family():
    """The page is written by scripts/model_table.py; a new family needs a new run."""
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    modules = sorted((ROOT / "src" / "tokenmill" / "models").glob("*.py"))
    names = [path.stem for path in modules if re.search(r"^(FAMILY|MULTIMODAL) = ", path.read_text("utf-8"), re.M)]
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    assert len(names) > 15 and sorted(rows) == names
    assert not [line for line in rows.values() if "| NO |" in line or "DIFFERS" in line]
