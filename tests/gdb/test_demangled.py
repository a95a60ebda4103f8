"""Names of C++ as people write them, wherever a symbol is shown: on the command line, in GDB and in drgn; and as the
linker has them in the JSON, for programs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from gdb_runner import gdb
from karst_command import KARST, TESTS, Target
from karst_drgn import DRGN, DrgnTarget
from karst_programs import Program, started

TAKE, LINKED = "shop::Basket<int>::take(int)+0x", "_ZN4shop6BasketIiE4takeEi+0x"
VTABLE, GLOBAL = "begins with a pointer to vtable for shop::Basket<int>+0x10", "shop::first_taken in "


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    directory = tmp_path_factory.mktemp("baskets")
    with started([KARST, "run", "--mark", "--recorder", TESTS / "baskets"], directory) as started_:
        yield started_


@pytest.fixture(scope="module")
def basket(program: Program) -> str:
    return f"{program.values()['basket']:#x}"


def questions(basket: str) -> dict[str, str]:
    """What to ask, and what has to be in the answer."""
    return {f"block {basket}": VTABLE, "sites": TAKE, "sites --stacks": TAKE, f"history {basket}": TAKE,
            f"history {basket} --stacks": TAKE, "blocks --size 16:64": TAKE, f"refs {basket}": GLOBAL}


def check(said: str, part: str) -> None:
    assert part in said and "_ZN" not in said, said


def test_command_line(program: Program, basket: str) -> None:
    target = Target.process(program.pid)
    for words, part in questions(basket).items():
        done = target.run(*words.split())
        check(done.stdout, part)
    check(target.run("block", basket).stdout, f"by new at {TAKE}")


@pytest.mark.skipif(shutil.which(DRGN) is None, reason="needs drgn")
def test_drgn(program: Program, basket: str) -> None:
    for words in (f"block {basket}", "sites"):
        check(DrgnTarget(["-p", str(program.pid)]).run(*words.split()).stdout, questions(basket)[words])


def test_gdb(program: Program, basket: str, directory: Path) -> None:
    asked = questions(basket)
    answers = gdb(["-p", str(program.pid)], [f"karst {words}" for words in asked], directory)
    for words, part in asked.items():
        check(answers.of(f"karst {words}").good(), part)


def test_json_has_both(program: Program, basket: str) -> None:
    target = Target.process(program.pid)
    frames = [site["stack"][0] for site in target.json("sites")["sites"]]
    frames += [event["stack"][0] for event in target.json("history", basket)["events"]]
    pairs = [(frame["text"], frame["demangled"]) for frame in frames]
    ours = [(text, demangled) for text, demangled in pairs if text.startswith(LINKED)]
    assert len(ours) >= 2 and all(demangled.startswith(TAKE) for _, demangled in ours), pairs
    assert any(text == demangled for text, demangled in pairs), pairs  # C
    lines = target.json("blocks", "--size", "16:64")["blocks"]
    assert os.path.commonprefix([LINKED, next(line["site"] for line in lines if line["address"] == basket)]) == LINKED
