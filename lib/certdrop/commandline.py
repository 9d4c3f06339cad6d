"""Command lines that a person types: a table each. argparse reads them; help, and what is refused, have our own layout and words.

What cron and sudo start reads its few words by itself: certdrop-install loads none of this, and certdrop-issue only to refuse a word.
Runs as: every principal. Trusts: nothing of what is typed. Reads: nothing. Writes: standard output and error.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from certdrop import VERSION

WIDTH = 100                        # columns of a help text
GIVEN = "yes"                      # the value of an option that takes none


class Usage(Exception):
    """The command line is not understood; the text says what of it."""


class Words(NamedTuple):
    """What was typed: the verb ("" without one), the names, and the options that were given, with their values."""

    verb: str
    names: list[str]
    options: dict[str, str]


class Syntax(NamedTuple):
    """What may follow a program, or one of its verbs."""

    usage: tuple[str, ...]         # what follows the name, in each form that there is; a newline where it goes on below
    does: str
    options: Mapping[str, str]     # "--name NAME", "--file [PATH]" or "--yes", and what it means; a value in brackets is a path, or missing
    example: str
    more: str = ""                 # about the whole of it
    takes_names: bool = True


class Program(NamedTuple):
    """A program's command line."""

    name: str
    page: str                      # its manual
    syntax: Syntax
    verbs: Mapping[str, Syntax] = {}

    def main(self, argv: list[str], work: Callable[[Words], int], wrong: int = os.EX_USAGE) -> int:
        """The exit code of `work`; of --help and --version 0; `wrong` where the words, or what `work` finds in them, are not understood."""
        if self.verbs and argv[:1] == ["help"]:
            argv = [*argv[1:2], "--help"]
        try:
            words = self.read(argv)
            if "--help" in words.options:
                print(self.help(words.verb), end="")
            elif "--version" in words.options:
                print(f"{self.name} {VERSION}")
            else:
                return work(words)
        except Usage as error:
            print(refusal(self.name, error, self._place(next((word for word in argv[:1] if word in self.verbs), ""))), file=sys.stderr)
            return wrong
        return os.EX_OK

    def read(self, argv: list[str]) -> Words:
        """What was typed. Options may stand before and after names, with `=` or without; `--` ends them. Raises Usage."""
        verb, rest = ("", argv) if not self.verbs or not argv or argv[0].startswith("-") else (argv[0], argv[1:])
        if verb and verb not in self.verbs:
            raise Usage(unknown(verb, "no such verb", self.verbs))
        end = rest.index("--") if "--" in rest else len(rest)
        typed = ["--help" if word == "-h" else word for word in rest[:end]]
        if "--help" in typed:
            return Words(verb, [], {"--help": GIVEN})
        syntax, parser = self.verbs.get(verb, self.syntax), self.parser(verb)
        bare = {spec.partition(" ")[0] for spec in syntax.options if " [" in spec}
        for place, word in enumerate(typed):
            if word in bare and not "".join(typed[place + 1:place + 2]).startswith("/"):
                typed[place] = f"{word}="      # it has no value, and the next word is a name
        try:
            found, others = parser.parse_known_args(typed)
        except argparse.ArgumentError as error:
            takes = any(spec.startswith(f"{error.argument_name} ") for spec in syntax.options)
            raise Usage(f"{error.argument_name} {'needs a' if takes else 'takes no'} value") from None
        for word in others:
            if word.startswith("-"):
                raise Usage(unknown(word, f"no such option{' of ' * bool(verb)}{verb}", options_of(parser)))
        names = [*others, *rest[end + 1:]]
        options = {option: value if isinstance(value, str) else "--" for option, value in vars(found).items()}     # Python 3.11 takes that out of --name=--
        if "--version" not in options:
            if self.verbs and not verb:
                raise Usage(f"what is to be done? {', '.join(self.verbs)}")
            if names and not syntax.takes_names:
                raise Usage(f"{names[0]!a:.80}: {verb or self.name} takes no names")
        return Words(verb, names, options)

    def parser(self, verb: str = "") -> argparse.ArgumentParser:
        """What reads the options. It gets no names: argparse takes those apart that stand on both sides of an option."""
        vars(argparse).update(_=str)           # none of its own words is shown; else it would read translations, from where the environment says
        parser = argparse.ArgumentParser(self._place(verb), add_help=False, allow_abbrev=False, exit_on_error=False)
        own = {"--help": "show this"} if verb else {"--help": "show this", "--version": "say the version"}
        for spec, text in {**self.verbs.get(verb, self.syntax).options, **own}.items():
            option, _, value = spec.partition(" ")
            if value:
                parser.add_argument(option, dest=option, metavar=value, default=argparse.SUPPRESS, help=text)
            else:
                parser.add_argument(option, dest=option, action="store_const", const=GIVEN, default=argparse.SUPPRESS, help=text)
        return parser

    def help(self, verb: str = "") -> str:
        """The help of the program or a verb."""
        syntax = self.verbs.get(verb, self.syntax)
        places = {self._place(one): self.verbs[one].usage for one in self.verbs} if self.verbs and not verb else {self._place(verb): syntax.usage}
        usages = [f"{place} {form}".replace("\n", "\n" + " " * len(f"usage: {place} ")) for place, forms in places.items() for form in forms]
        listed = syntax.options if verb or not self.verbs else {one: self.verbs[one].does for one in self.verbs}
        parts = ["usage: " + "\n       ".join(usages), _folded(_sentence(syntax.does)), _list(listed), _folded(syntax.more),
                 f"{self.name} VERB --help says more, and has the options." * (listed is not syntax.options),
                 "\n".join(f"  {example}" for example in syntax.example.splitlines()), f"See {self.page}."]
        return "\n\n".join(part for part in parts if part) + "\n"

    def _place(self, verb: str) -> str:
        return f"{self.name} {verb}".strip()


def options_of(parser: argparse.ArgumentParser) -> list[str]:
    """The options that a parser knows."""
    return [option for action in parser._actions for option in action.option_strings]


def unknown(word: str, what: str, known: Iterable[str]) -> str:
    """That a word is none of those that are known, and the nearest that is."""
    import difflib                             # for this alone
    by_letters = {one.lstrip("-"): one for one in known}
    near = difflib.get_close_matches(word.partition("=")[0].lstrip("-")[:80], by_letters, 1)
    return f"{word!a:.80}: {what}" + (f"; did you mean {by_letters[near[0]]}?" if near else "")


def refusal(program: str, error: Exception, place: str) -> str:
    """The line that says what is not understood, and where help is."""
    text = str(error)
    return f"{program}: {text}{'' if text.endswith('?') else ';'} {place} --help shows how"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].removesuffix('.')}."


def _list(entries: Mapping[str, str]) -> str:
    """Each entry beside what it means."""
    column = max(map(len, entries), default=0) + 4
    return "\n".join(_folded(text, f"  {entry}".ljust(column), " " * column) for entry, text in entries.items())


def _folded(text: str, first: str = "", following: str = "") -> str:
    import textwrap                            # for help alone
    return textwrap.fill(text, WIDTH, initial_indent=first, subsequent_indent=following, break_long_words=False, break_on_hyphens=False)
