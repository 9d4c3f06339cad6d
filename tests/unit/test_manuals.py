"""Manual pages, --help and completions agree with each other and with the code."""

from __future__ import annotations

import pathlib
import re
import runpy
import subprocess
import sys

import pytest

from certdrop import VERSION, commandline, spool
from certdrop.admin import command as admin
from certdrop.config import general, site
from certdrop.doctor import command as doctor
from certdrop.fleet import command as fleet
from certdrop.importer import command as importer
from certdrop.issuer import manage
from certdrop.keeper import revoke
from certdrop.nginx import command as nginx
from certdrop.status import command as status
from certdrop.watcher import command as watcher

ROOT = pathlib.Path(__file__).resolve().parents[2]
MAN = ROOT / "man"
completions = runpy.run_path(str(ROOT / "completions" / "make"))
PROGRAMS = sorted(path.name for path in (ROOT / "bin").iterdir() if path.is_file())
LINES = {line.name: line for line in (admin.LINE, manage.LINE, doctor.LINE, fleet.LINE, importer.LINE, nginx.LINE, status.LINE, watcher.LINE)}
VERBS = [(program, verb) for program, line in LINES.items() for verb in line.verbs or [""]]


def page(name: str) -> str:
    """The source of a manual page."""
    return (MAN / name).read_text(encoding="ascii")


def page_of(program: str) -> str:
    """The source of a program's manual page, of section 1 or 8."""
    (found,) = [path for path in MAN.glob(f"{program}.[18]")]
    return found.read_text(encoding="ascii")


def help_of(program: str, *words: str) -> str:
    """What `program --help` (or other words) prints, run from this tree."""
    source = (ROOT / "bin" / program).read_text(encoding="utf-8").replace("/usr/share/certdrop", str(ROOT / "lib"))
    return subprocess.run([sys.executable, "-c", source, *(words or ["--help"])], stdout=subprocess.PIPE, check=True, text=True).stdout


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_says_its_version(program):
    """In one line, for anyone."""
    assert help_of(program, "--version") == f"{program} {VERSION}\n"


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_has_a_manual_page(program):
    """With the sections that a reader looks for."""
    sections = set(re.findall(r"^\.Sh (.*)$", page_of(program), re.M))
    assert {"NAME", "SYNOPSIS", "DESCRIPTION", "EXIT STATUS", "FILES", "SECURITY", "SEE ALSO"} <= sections


@pytest.mark.parametrize("name", sorted(path.name for path in MAN.glob("*.[158]")))
def test_every_manual_page_begins_with_examples(name):
    """They are the first thing after what it is about: the first subsection of DESCRIPTION, whose introduction is short."""
    _, _, rest = page(name).partition(".Sh DESCRIPTION\n")
    introduction, _, rest = rest.partition(".Ss Examples\n")
    assert ".Ss" not in introduction and ".Sh" not in introduction and len(introduction.splitlines()) < 30
    assert re.search(r"^\.(?:Dl|Bd -literal)", re.split(r"^\.S[sh] ", rest, flags=re.M)[0], re.M)


def whole_help(program: str) -> str:
    """What `program --help` prints, and `program VERB --help` for each verb."""
    verbs = LINES[program].verbs if program in LINES else []
    return "\n".join([help_of(program), *(help_of(program, verb, "--help") for verb in verbs)])


def options(program: str, verb: str) -> dict[str, bool]:
    """The options that the parser knows, but for --help and --version; whether each takes a value."""
    actions = [action for action in LINES[program].parser(verb)._actions if action.option_strings not in (["--help"], ["--version"])]
    return {option: action.nargs is None for action in actions for option in action.option_strings}


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_and_manual_name_the_same_options(program):
    """An option that --help shows is in the manual."""
    shown = set(re.findall(r"--([a-z][a-z-]+)", whole_help(program))) - {"help", "version"}
    assert shown <= set(re.findall(r"Fl -([a-z][a-z-]+)", page_of(program)))


def test_every_program_but_those_of_cron_and_sudo_has_a_parser():
    """So that nothing of what follows passes over one."""
    assert set(PROGRAMS) - set(LINES) == {"certdrop-issue", "certdrop-install", "certdrop-courier", "certdrop-desk"}


def synopsis(program: str) -> dict[str, dict[str, bool]]:
    """The options that the SYNOPSIS of a manual has for each verb ("" without one); whether each takes a value."""
    found: dict[str, dict[str, bool]] = {}
    text = page_of(program).partition("\n.Sh SYNOPSIS\n.Nm\n")[2].partition("\n.Sh ")[0]
    for form in text.split("\n.Nm\n"):
        first = form.splitlines()[0]
        for verb in first.removeprefix(".Cm ").split(" | ") if first.startswith(".Cm ") else [""]:
            found.setdefault(verb, {}).update({f"-{option}": bool(value) for option, value in re.findall(r"Fl (-[a-z-]+)( (?:Op )?Ar)?", form)})
    return found


@pytest.mark.parametrize("program", LINES)
def test_the_synopsis_has_what_the_parser_knows(program):
    """Each verb, each option of it and whether it takes a value; and no other."""
    assert synopsis(program) == {verb: options(program, verb) for name, verb in VERBS if name == program}


def listed(program: str, text: str) -> dict[str, bool]:
    """The options that the lists of a manual explain; whether each takes a value."""
    items = "\n".join(re.findall(r"^\.It (Fl -.*)$", text, re.M))
    return {f"-{option}": bool(value) for option, value in re.findall(r"Fl (-[a-z-]+)( (?:Op )?Ar)?", items)}


@pytest.mark.parametrize("program", LINES)
def test_the_manual_explains_what_the_parser_knows(program):
    """In a list below each verb, or in one for the whole program; and no other option."""
    text, verbs = page_of(program), LINES[program].verbs
    if program == "certdrop":
        parts = re.split(rf"^\.It Cm ({'|'.join(verbs)})(?![a-z-]).*\n", text.partition("\n.Sh DESCRIPTION\n")[2].partition("\n.Sh ")[0], flags=re.M)
        assert {verb: listed(program, part) for verb, part in zip(parts[1::2], parts[2::2])} == {verb: options(program, verb) for verb in verbs}
    else:
        assert listed(program, text) == {option: takes for name, verb in VERBS if name == program for option, takes in options(program, verb).items()}
        assert [verb for verb in verbs if f"\n.It Cm {verb}\n" not in text] == []


@pytest.mark.parametrize("program", [program for program, line in LINES.items() if line.verbs])
def test_the_manual_says_that_verbs_have_help(program):
    """Each its own."""
    assert f"\n.Ql {program} VERB --help\n" in page_of(program)


def table() -> dict[str, list[str]]:
    """What completions/table says may follow each program and verb."""
    return dict(completions["read"](str(ROOT / "completions" / "table")))


@pytest.mark.parametrize("program", PROGRAMS)
def test_completion_knows_the_options(program):
    """All that --help shows, and nothing that it does not."""
    words = {word.partition("=")[0] for place, follow in table().items() if place.split()[0] == program for word in follow}
    text = whole_help(program)
    shown = set(re.findall(r"--[a-z][a-z-]+", text))
    assert shown - words == set() and {word for word in words if word.startswith("--")} - shown <= {"--help", "--version"}
    verbs = {place.split()[1] for place in table() if place.startswith(f"{program} ")}
    assert verbs == set(re.findall(rf"(?:usage:|^)\s+{program} ([a-z-]+)\b", help_of(program).partition("\n\n")[0], re.M)) if verbs else True


@pytest.mark.parametrize("program", LINES)
def test_completion_knows_what_the_parser_knows(program):
    """Each verb, each option where it may stand and whether it takes a value, names where it takes some; and nothing else."""
    line = LINES[program]
    for verb in ["", *line.verbs]:
        follow = table()[f"{program} {verb}".strip()]
        found = {word.partition("=")[0]: "=" in word for word in follow if word.startswith("--")}
        known = dict.fromkeys(commandline.options_of(line.parser(verb)), False)
        assert found == {**known, **options(program, verb)}
        others = [word for word in follow if not word.startswith("--")]
        if line.verbs and not verb:
            assert others == list(line.verbs)
        elif verb not in ("add", "dhparam"):             # new names, and numbers
            assert others == ["SITE"] * line.verbs.get(verb, line.syntax).takes_names
    assert [place for place in table() if place.split()[0] == program and place.partition(" ")[2] not in ["", *line.verbs]] == []


def test_completion_knows_the_kinds_of_key():
    """As the configuration has them."""
    assert list(site.KEYS) == completions["WORDS"]["KIND"].split()


def test_the_reasons_of_a_revocation_are_the_same_everywhere():
    """In the code, --help, the manual and the completions."""
    reasons = set(revoke.REASONS)
    assert set(completions["WORDS"]["REASON"].split()) == reasons
    assert [reason for reason in reasons if reason not in help_of("certdrop", "revoke", "--help") or f".It Cm {reason}\n" not in page("certdrop.8")] == []


ZSH = """compadd() { [[ $1 == -a ]] && print -l -- ${(P)2} }; _files() { print FILES }; _users() { print USERS }
words=(%s ''); CURRENT=$#words; service=$words[1]; source %s"""
BASH = """source %s; COMP_WORDS=(%s ''); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _certdrop; printf '%%s\\n' "${COMPREPLY[@]}\""""
FISH = "source %s; complete -C '%s'"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize("typed, offered", [
    ("certdrop", "rotate"), ("certdrop rotate", "rotate: --all"), ("certdrop add --key", "ecdsa-p256"), ("certdrop dhparam", "4096"),
    ("certdrop revoke --reason", "superseded"),
    ("certdrop-status", "--json")])
def test_completion_in_each_shell(shell, typed, offered, tmp_path):
    """The files that the table becomes, asked by the shells themselves."""
    completions["main"]([str(ROOT / "completions" / "table"), *(str(tmp_path / name) for name in ("bash", "zsh", "fish"))])
    program, offered = typed.split()[0], offered.rpartition(" ")[2]
    if shell == "bash":
        text = BASH % (tmp_path / "bash" / program, typed)
    elif shell == "zsh":
        text = ZSH % (typed, tmp_path / "zsh" / "_certdrop")
    else:
        text = FISH % (tmp_path / "fish" / f"{program}.fish", typed + " " + "--" * offered.startswith("--"))
    done = subprocess.run([shell, "-c", text], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
                          env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)})
    assert offered in [line.split("\t")[0] for line in done.stdout.splitlines()], done


def test_every_reason_is_explained():
    """certdrop-spool(5) has each reason of spool.REASONS once, in its order."""
    _, _, rest = page("certdrop-spool.5").partition(".Ss Reasons\n")
    reasons, _, _ = rest.partition(".Ss ")
    assert tuple(re.findall(r"^\.It Cm (\S+)$", reasons, re.M)) == spool.REASONS


def test_every_key_is_explained():
    """certdrop.toml(5) has each key of the configuration and of a site."""
    keys = set(vars(general.Config())) | set(vars(site.Site("a.test", general.Config()))) - {"name"}
    explained = set(re.findall(r"[a-z_]+", " ".join(re.findall(r"^\.It (?:Bq )*Cm (.*)$", page("certdrop.toml.5"), re.M))))
    assert keys - explained == set()


def test_the_examples_are_right(monkeypatch, tmp_path):
    """The example files are read without complaint, and certdrop.toml's shows the defaults, and every key."""
    (tmp_path / "sites.d").mkdir()
    for source, target in (("certdrop.toml", "certdrop.toml"), ("site.toml", "sites.d/example.org.toml")):
        text = (ROOT / "etc" / source).read_text(encoding="ascii")
        (tmp_path / target).write_text(text, encoding="ascii")
    monkeypatch.setattr(site, "ETC", str(tmp_path))
    config = general.load_config()
    assert vars(config) == {**vars(general.Config()), "contact": ["hostmaster@example.org"]}
    assert site.load_site("example.org", config).domains == ["example.org", "www.example.org"]
    shown = (ROOT / "etc" / "certdrop.toml").read_text(encoding="ascii")
    assert [key for key in vars(config) if f"\n{key} =" not in shown and f"\n[{key}]" not in shown] == []
