"""certdrop add-name and drop-name: the one list that is changed in a site's file."""

from __future__ import annotations

import tomllib

import pytest

from certdrop.admin import names
from certdrop.by_hand import Refused

PATH = "/etc/certdrop/sites.d/a.test.toml"
NEW = 'domains = ["a.test", "b.test"]'


@pytest.mark.parametrize("before, after", [
    ('domains = ["a.test"]\n', NEW + "\n"), ('domains=["a.test"]\nkey = "rsa-2048"\n', NEW + '\nkey = "rsa-2048"\n'),
    ('# mine\ndomains = [\n  "a.test",\n  "c.test",\n]\n# more\n', f"# mine\n{NEW}\n# more\n"),
    ("domains = ['a.test'] # the shop\n[[copy]]\npath = '/x'\n", f"{NEW} # the shop\n[[copy]]\npath = '/x'\n"),
])
def test_nothing_but_the_list_is_changed(before: str, after: str) -> None:
    """Comments, other keys and their order stay."""
    assert names.edited(PATH, before, ["a.test", "b.test"]) == after
    assert tomllib.loads(after)["domains"] == ["a.test", "b.test"]


@pytest.mark.parametrize("text", [
    "", 'key = "rsa-2048"\n', 'domains = [\n  "a.test",  # the shop\n]\n', '"domains" = ["a.test"]\n',
    'note = """\ndomains = ["x"]\n"""\ndomains = ["a.test"]\n',
    '[copy]\ndomains = ["a.test"]\n', 'domains = ["a]b.test"]\n', "domains = [\n",
])
def test_what_is_not_sure_is_for_a_person(text: str) -> None:
    """It is said what to write, and where; nothing is guessed."""
    with pytest.raises(Refused, match=r"a\.test\.toml: has another form than certdrop writes; write domains = .*, then run certdrop renew a\.test$"):
        names.edited(PATH, text, ["a.test", "b.test"])
