"""What people type: how the words are taken apart, what is refused and in which words, and how help looks."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certdrop import VERSION, commandline
from certdrop.admin import command as admin
from certdrop.commandline import Program, Syntax, Usage
from certdrop.doctor import command as doctor
from certdrop.fleet import command as fleet
from certdrop.importer import command as importer
from certdrop.issuer import manage
from certdrop.issuer.options import HELP as ISSUE
from certdrop.nginx import command as nginx
from certdrop.status import command as status
from certdrop.watcher import command as watcher

LIB = pathlib.Path(commandline.__file__).parents[1]
LINES = {line.name: line for line in (admin.LINE, manage.LINE, doctor.LINE, fleet.LINE, importer.LINE, nginx.LINE, status.LINE, watcher.LINE)}
PLACES = [(program, verb) for program, line in LINES.items() for verb in ["", *line.verbs]]
TOOL = Program("tool", "tool(1)", Syntax((), "does things", {}, "tool make x"), {
    "make": Syntax(("NAME... [--to PLACE] [--file [PATH]] [--force]",), "makes", {"--to PLACE": "where", "--file [PATH]": "and there", "--force": "all"},
                   "tool make x"),
    "look": Syntax(("[--far]",), "looks", {"--far": "beyond"}, "tool look", takes_names=False)})


@pytest.mark.parametrize("typed, names, options", [
    ("make", [], {}),
    ("make a b", ["a", "b"], {}),
    ("make --force a b", ["a", "b"], {"--force": "yes"}),
    ("make a --force b", ["a", "b"], {"--force": "yes"}),
    ("make a b --force", ["a", "b"], {"--force": "yes"}),
    ("make a --to x b", ["a", "b"], {"--to": "x"}),
    ("make --to=x a --to=y", ["a"], {"--to": "y"}),
    ("make --to= a", ["a"], {"--to": ""}),
    ("make --to=-x", [], {"--to": "-x"}),
    ("make --to=a=b", [], {"--to": "a=b"}),
    ("make --to=-- a", ["a"], {"--to": "--"}),
    ("make a -- --force -h", ["a", "--force", "-h"], {}),
    ("make -- -- x", ["--", "x"], {}),
    ("make --file a", ["a"], {"--file": ""}),
    ("make --file /a b", ["b"], {"--file": "/a"}),
    ("make --file=a b", ["b"], {"--file": "a"}),
    ("make --file --force", [], {"--file": "", "--force": "yes"}),
    ("make --file", [], {"--file": ""}),
    ("make --to x y -- z", ["y", "z"], {"--to": "x"})])
def test_what_is_understood(typed, names, options):
    """Options before and after names, with `=` and without; `--` ends them; of two values the last counts."""
    assert TOOL.read(typed.split(" ")) == ("make", names, options)


@pytest.mark.parametrize("typed, said", [
    ("", "what is to be done? make, look; tool --help shows how"),
    ("mkae", "'mkae': no such verb; did you mean make? tool --help shows how"),
    ("frobnicate", "'frobnicate': no such verb; tool --help shows how"),
    ("--force make", "'--force': no such option; tool --help shows how"),
    ("-- make", "what is to be done? make, look; tool --help shows how"),
    ("make x --foce", "'--foce': no such option of make; did you mean --force? tool make --help shows how"),
    ("make x -force", "'-force': no such option of make; did you mean --force? tool make --help shows how"),
    ("make x --fo", "'--fo': no such option of make; tool make --help shows how"),
    ("make x --far", "'--far': no such option of make; tool make --help shows how"),
    ("make x --ot=7", "'--ot=7': no such option of make; tool make --help shows how"),
    ("make x --forc=7", "'--forc=7': no such option of make; did you mean --force? tool make --help shows how"),
    ("make x --Force", "'--Force': no such option of make; did you mean --force? tool make --help shows how"),
    ("make x -", "'-': no such option of make; tool make --help shows how"),
    ("make x -1", "'-1': no such option of make; tool make --help shows how"),
    ("make x -hx", "'-hx': no such option of make; tool make --help shows how"),
    ("make x --version", "'--version': no such option of make; tool make --help shows how"),
    ("make x --to", "--to needs a value; tool make --help shows how"),
    ("make x --to --force", "--to needs a value; tool make --help shows how"),
    ("make x --to --", "--to needs a value; tool make --help shows how"),
    ("make x --force=yes", "--force takes no value; tool make --help shows how"),
    ("look x", "'x': look takes no names; tool look --help shows how"),
    ("look -- --far", "'--far': look takes no names; tool look --help shows how")])
def test_what_is_not_understood(typed, said, capsys):
    """One line, with the nearest word that there is, and where help is; nothing is done."""
    assert TOOL.main(typed.split(), lambda words: pytest.fail(str(words))) == os.EX_USAGE
    assert capsys.readouterr() == ("", f"tool: {said}\n")


def test_what_the_program_itself_refuses(capsys):
    """A Usage from wherever in its work gets the same words, and the code that it asks for."""
    def work(words):
        raise Usage("make needs a name")
    assert TOOL.main(["make", "--force"], work, wrong=3) == 3
    assert capsys.readouterr() == ("", "tool: make needs a name; tool make --help shows how\n")


@pytest.mark.parametrize("word", ["--" + "a" * 5000, "--\n\x1b[31mred", "-\udc80\u202e", "--x" + "%s%(prog)s"])
def test_words_are_shown_safe_and_short(word, capsys):
    """Whatever somebody has a person type or paste, the line stays one, and short."""
    for argv in (["make", word], [word.strip("-")], ["look", word.strip("-")]):
        assert TOOL.main(argv, lambda words: 0) == os.EX_USAGE
        said = capsys.readouterr().err
        assert len(said) < 200 and said.count("\n") == 1 and said.isascii() and said.strip().isprintable()


@pytest.mark.parametrize("argv, verb", [(["--help"], ""), (["-h"], ""), (["help"], ""), (["help", "make"], "make"), (["make", "--help"], "make"),
                                        (["make", "x", "-h", "--nonsense"], "make"), (["make", "--to", "--help"], "make"), (["--help", "make"], "")])
def test_help_is_found(argv, verb, capsys):
    """However it is asked for, whatever else is typed, and it does nothing else."""
    assert TOOL.main(argv, lambda words: pytest.fail(str(words))) == os.EX_OK
    assert capsys.readouterr() == (TOOL.help(verb), "")


def test_the_version(capsys):
    """Of the program, without a verb."""
    assert TOOL.main(["--version"], lambda words: pytest.fail(str(words))) == os.EX_OK
    assert capsys.readouterr() == (f"tool {VERSION}\n", "")


def test_help_looks_so():
    """The same with each release of Python: argparse's own layout is not used."""
    assert TOOL.help("make") == """\
usage: tool make NAME... [--to PLACE] [--file [PATH]] [--force]

Makes.

  --to PLACE     where
  --file [PATH]  and there
  --force        all

  tool make x

See tool(1).
"""
    assert TOOL.help() == """\
usage: tool make NAME... [--to PLACE] [--file [PATH]] [--force]
       tool look [--far]

Does things.

  make  makes
  look  looks

tool VERB --help says more, and has the options.

  tool make x

See tool(1).
"""


@pytest.mark.parametrize("program, verb", PLACES)
def test_each_help_is_whole(program, verb):
    """Usage, what it does, each option and an example of its own; in 100 columns."""
    line = LINES[program]
    text, syntax = line.help(verb), line.verbs.get(verb, line.syntax)
    place = f"{program} {verb}".strip()
    assert text.isascii() and max(map(len, text.splitlines())) <= 100 and "\n\n\n" not in text
    assert text.startswith(f"usage: {place}") and text.endswith(f"\n\nSee {line.page}.\n")
    assert [spec for spec in syntax.options if f"\n  {spec}  " not in text] == []
    assert [one for one in syntax.example.splitlines() if f"\n  {one}\n" not in text] == [] and f"{place}" in syntax.example


@pytest.mark.parametrize("program, verb", PLACES)
def test_the_usage_names_what_the_parser_knows(program, verb):
    """Each option with its value, and none that it does not know."""
    syntax = LINES[program].verbs.get(verb, LINES[program].syntax)
    usage = " ".join(syntax.usage)
    assert set(re.findall(r"--[a-z-]+(?: (?:[A-Z]+|\[[A-Z]+\]))?", usage)) == set(syntax.options)
    assert syntax.takes_names == bool(re.search(r"(^|\[| )(NAME|DOMAIN)(\.\.\.| |$)|2048", re.sub(r"--[a-z-]+ [A-Z]+", "", usage))) or not usage


@pytest.mark.parametrize("program, verb", [place for place in PLACES if LINES[place[0]].verbs == {} or place[1]])
def test_the_examples_are_understood(program, verb):
    """By the program itself."""
    line = LINES[program]
    for example in line.verbs.get(verb, line.syntax).example.splitlines():
        words = example.partition("  ")[0].removeprefix("sudo ").split()
        assert words[0] == program and line.read(words[1:]).verb == verb


def test_certdrop_issue_uses_the_same_words(capfd):
    """Though it takes them apart by itself."""
    from certdrop.issuer import command
    assert command.main(["--paln"]) == os.EX_USAGE and command.main(["--force"]) == os.EX_USAGE
    assert capfd.readouterr().err == ("certdrop-issue: '--paln': no such option; did you mean --plan? certdrop-issue --help shows how\n"
                                      "certdrop-issue: --force needs the name of a site; certdrop-issue --help shows how\n")
    assert max(map(len, ISSUE.splitlines())) <= 100


def test_certdrop_install_uses_the_same_words(capfd):
    """Though it knows none."""
    from certdrop.keeper import command
    assert command.main(["--all"]) == os.EX_USAGE and command.main(["example.org"]) == os.EX_USAGE and command.main([""]) == os.EX_USAGE
    assert capfd.readouterr().err == ("certdrop-install: '--all': no such option; certdrop-install --help shows how\n"
                                      "certdrop-install: 'example.org': certdrop-install takes no names; certdrop-install --help shows how\n"
                                      "certdrop-install: '': certdrop-install takes no names; certdrop-install --help shows how\n")


def test_nobody_but_a_person_gives_certdrop_install_words() -> None:
    """So what answers them (keeper/usage.py) is not among what root loads by cron and sudo."""
    root = LIB.parent
    lines = [line for name in ("cron.d/certdrop", "sudoers.d/certdrop", "systemd/certdrop-install.service") for line in (root / name).read_text().splitlines()
             if "/usr/sbin/certdrop-install" in line and not line.startswith("#")]
    after = [line.rpartition("/usr/sbin/certdrop-install")[2].split(" ") for line in lines]
    assert [words[:2] for words in after] == [[";", "fi"], ["", '""'], [""]]
    program = f"import sys; sys.path.insert(0, {str(LIB)!r}); import certdrop.start, certdrop.keeper.command; print('certdrop.keeper.usage' in sys.modules)"
    assert subprocess.run([sys.executable, "-IS", "-c", program], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize("module, argv", [("issuer", ["--plan"]), ("keeper", ["--help"])])
def test_what_cron_starts_loads_no_argparse(module, argv):
    """It would be a third of what a run with nothing to do takes."""
    program = (f"import sys; sys.path.insert(0, {str(LIB)!r}); import certdrop.start, certdrop.{module}.command as c; "
               f"getattr(c, 'Options', lambda *_: 0)({argv}, False); print({{'argparse', 'certdrop.commandline', 'gettext', 'difflib'}} & set(sys.modules))")
    done = subprocess.run([sys.executable, "-IS", "-c", program], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == "set()\n"


def test_no_translation_is_read(tmp_path):
    """Of the words that argparse would show: who can set LANGUAGE would have root read a file of theirs."""
    (tmp_path / "LC_MESSAGES").mkdir()
    (tmp_path / "LC_MESSAGES" / "messages.mo").write_bytes(b"\xde\x12\x04\x95cut short")       # what reads it, raises
    program = (f"import sys; sys.path.insert(0, {str(LIB)!r}); from certdrop.status import command; "
               "sys.exit([command.main(argv) for argv in (['--help'], ['--nonsense'], ['--json=x'], ['--warning'])] != [0, 3, 3, 3])")
    done = subprocess.run([sys.executable, "-I", "-c", program], env={"LANGUAGE": str(tmp_path), "LANG": "de_DE.UTF-8"}, stdout=subprocess.DEVNULL,
                          stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0, done.stderr


def by_hand(argv):
    """(names, options) that the words of `tool make` are, or None where they are not understood: what argparse is held to."""
    names, options, rest = [], {}, list(argv)
    while rest:
        word = rest.pop(0)
        option, equals, value = word.partition("=")
        if word == "--":
            return names + rest, options
        if option == "--to" and (equals or rest and (not rest[0].startswith("-") or " " in rest[0] or rest[0] in ("-", "-1"))):
            options["--to"] = value if equals else rest.pop(0)
        elif word == "--force":
            options[word] = "yes"
        elif option == "--file":
            options["--file"] = value if equals else rest.pop(0) if rest and rest[0].startswith("/") else ""
        elif word.startswith("-"):
            return None
        else:
            names.append(word)
    return names, options


@given(st.lists(st.sampled_from(["a", "b c", "", "/p", "--to", "--to=", "--to=x=y", "--to=--", "--force", "--force=x", "--fo", "--t=x", "--file", "--file=",
                                 "--file=q", "--", "-", "-1", "-x", "-x y", "--x y", "@a", "="]), max_size=6))
def test_argparse_does_not_surprise(argv):
    """Whatever the order, it is what the words say, and never an end of the program by argparse."""
    wanted = by_hand(argv)
    try:
        words = TOOL.read(["make", *argv])
    except Usage:
        assert wanted is None
    else:
        assert (words.names, words.options) == wanted
