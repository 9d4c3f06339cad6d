"""docs/hardened-hosts.md and the table that the stage builds (tests/system/hardened.py) have the same rows, with the same words and lines."""

from __future__ import annotations

import importlib.util
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[2]


def cases():
    """The table; nothing of the stage is needed to read it."""
    import sys
    spec = importlib.util.spec_from_file_location("hardened", ROOT / "tests/system/hardened.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["hardened"] = module                       # dataclasses look there
    spec.loader.exec_module(module)
    return module.CASES


def rows():
    """The document's rows, by their first cell."""
    text = (ROOT / "docs/hardened-hosts.md").read_text()
    listed = [line.strip("| ").split(" | ") for line in re.findall(r"(?m)^\| .* \|$", text)]
    return [cells for cells in listed if cells[0] != "the host"]


def test_each_row_is_a_case_and_each_case_a_row():
    """No host is promised that was not built, and none is built in secret."""
    names = [case.name for case in cases()]
    assert sorted(cells[0] for cells in rows()) == sorted(names) and len(set(names)) == len(names) >= 40


def test_what_is_said_and_what_mends_it():
    """A row has what the test looks for: who renews, the words, the line; a row without words is one that needs nothing."""
    found = {cells[0]: cells[1:] for cells in rows()}
    result = {"cron": "renewed", "root": "renewed by root's hourly run", "nobody": "not renewed",
              "": "not renewed where root may not raise limits; else renewed"}
    for case in cases():
        if case.by == "cron" and not case.said + case.mailed + case.doctor:
            assert found[case.name] == [], case.name
        else:
            comes, said, mends = found[case.name]
            assert comes == result[case.by] and all(words in said for words in (case.said, case.mailed.strip(), case.doctor)), case.name
            assert mends == f"`{case.mend}`" != "``", case.name
