"""docs/when-it-fails.md knows every message that asks somebody for something: a new one has to be explained there."""

from __future__ import annotations

import ast
import pathlib
import re
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
LIB = ROOT / "lib" / "certdrop"
RAISED = {"Refused", "ConfigError", "Failed", "Failure", "Undelivered", "Moved", "ConfigMissing", "PermissionError", "fail", "_put_off"}
# What a message of these says is for a log, or the reason of a refusal that certdrop-spool(5) explains.
PASSED_OVER = {"signer/policy.py", "signer/service.py:Refused", "judge/chain.py", "foreign.py", "spool.py"}


def literals(node: ast.expr) -> Iterator[str]:
    """The texts that an expression may become, with … for what varies."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    elif isinstance(node, ast.IfExp):
        yield from literals(node.body)
        yield from literals(node.orelse)


def messages() -> Iterator[tuple[str, str]]:
    """(where, text) of each message in the sources."""
    for path in sorted(LIB.rglob("*.py")):
        name = str(path.relative_to(LIB))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if called in RAISED and not {name, f"{name}:{called}"} & PASSED_OVER:
                    for argument in node.args:
                        for text in literals(argument):
                            if " " in text.strip("… "):
                                yield f"{name}:{node.lineno}", text


@pytest.mark.parametrize("where, text", [pytest.param(where, text, id=where) for where, text in sorted(set(messages()))])
def test_every_message_is_explained(where: str, text: str) -> None:
    """A part of it that does not vary stands on the page."""
    page = (ROOT / "docs" / "when-it-fails.md").read_text(encoding="utf-8")
    parts = [part.strip(' :;,.()"') for part in re.split("…|; |: |, ", text)]
    told = [part for part in parts if part and ((len(part) > 6 and part in page) or f"{part}: …" in page)]
    assert told or not any(len(part) > 10 for part in parts), f"docs/when-it-fails.md does not explain: {text}"
