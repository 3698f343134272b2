"""The generated pages say what the commands and the sources say."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnssl_mae.cli import reference, troubleshooting
from tests.docs.commands import ROOT


@pytest.fixture(scope="module")
def messages() -> str:
    """The page of messages; the walk through all sources takes seconds."""
    return troubleshooting.page()


def test_the_page_of_commands_is_up_to_date() -> None:
    written = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    assert written == f"{reference.reference()}\n", f"docs/reference/cli.md is out of date; run: {reference.COMMAND}"


def test_the_page_of_messages_is_up_to_date(messages: str) -> None:
    written = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    assert written == f"{messages}\n", f"docs/troubleshooting.md is out of date; run: {troubleshooting.COMMAND}"


def test_every_verb_and_every_option_is_listed() -> None:
    sections = dict(part.split("`\n", 1) for part in reference.reference().split("\n## `")[1:])
    names = [name for name, _ in reference.verbs()]
    assert list(sections) == names
    assert {"nnssl-mae prepare", "nnssl-mae scan report", "nnssl-mae bench step"} <= set(names)
    for name, command in reference.verbs():
        for parameter in command.params:
            if parameter.param_type_name == "option" and parameter.name != "help":
                assert all(f"`{spelling}`" in sections[name] for spelling in parameter.opts), (name, parameter.name)


@pytest.mark.parametrize(
    "row",
    [
        "| `-d`, `--dataset` number | required | nnU-Net dataset number, 1 to 999. |",
        "| `--exclude-dataset` number | repeatable |",
        "| `--match-subjects`, `--no-match-subjects` | `--match-subjects` |",
        "| `--mode` text | `like-pretrained` |",
        "| `--dry-run` |  |",
        "    nnssl-mae preview CHECKPOINT SCANS... [OPTIONS]",
        "    nnssl-mae bench prepare [SCAN] [OPTIONS]",
    ],
)
def test_options_are_described_by_kind_and_default(row: str) -> None:
    assert row in reference.reference()


def package(tmp_path: Path, **modules: str) -> Path:
    """A made-up package with these modules."""
    for name, text in modules.items():
        file = tmp_path / "nnssl_mae" / f"{name.replace('__', '/')}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path / "nnssl_mae"


def test_sentences_are_whole_but_for_what_is_filled_in(tmp_path: Path) -> None:
    source = 'def f(x):\n    raise UserError(f"{x.name} is {x!r} mm thick; " + "use --max-spacing")\n'
    found = troubleshooting.sentences(package(tmp_path, scans__one=source))
    assert found == [troubleshooting.Sentence("… is … mm thick; use --max-spacing", "scans/one.py")]
    assert found[0].room == "Preparing (`prepare`)"


def test_words_that_have_a_name_are_filled_in_where_it_is_imported_too(tmp_path: Path) -> None:
    own = 'AGAIN = "run it again"\nraise UserError(f"{x} is damaged; {AGAIN}")\n'
    other = "from nnssl_mae.scans.own import AGAIN as MORE\nreturn_value = ResumableError(MORE)\n"
    found = troubleshooting.sentences(package(tmp_path, scans__own=own, study__other=other))
    assert [one.text for one in found] == ["… is damaged; run it again", "run it again"]


def test_messages_of_which_nothing_is_known_are_left_out(tmp_path: Path) -> None:
    assert (
        troubleshooting.sentences(package(tmp_path, one="raise UserError(str(error))\nraise ValueError('no user')"))
        == []
    )


def test_a_sentence_is_listed_once_in_each_part(messages: str) -> None:
    parts = messages.split("\n## ")[2:]
    for part in parts:
        texts = [line.rsplit(" (`", 1)[0] for line in part.splitlines() if line.startswith("- ")]
        assert len(texts) == len(set(texts))
    assert sum(part.count("\n- ") for part in parts) > 400
