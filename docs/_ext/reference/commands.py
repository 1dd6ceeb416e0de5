"""The commands of a program, with all their arguments and options."""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum
from inspect import cleandoc
from pathlib import Path
from typing import Any
from uuid import UUID

import typer.main

import ledger.cli
import projections.cli
import replay
from reference.markdown import cell, code, table
from reference.markdown import page as as_page

VALUES: dict[object, str] = {int: "NUMBER", float: "NUMBER", Path: "FILE", UUID: "ID"}
APPS = {"ledger": ledger.cli.app, "projections": projections.cli.app, "replay.py": replay.app}


def page(program: str) -> str:
    """Return the page of a program."""
    command = typer.main.get_command(APPS[program])
    sections = _below(program, command)
    return as_page(code(program), command.help or "", "", *sections, command.epilog or "")


def _below(name: str, command: Any) -> Iterator[str]:
    """Yield the sections of a command's own commands, and of theirs."""
    for part, found in sorted(command.commands.items()):
        yield from _section(f"{name} {part}", found)
        if hasattr(found, "commands"):
            yield from _below(f"{name} {part}", found)


def _section(name: str, command: Any) -> Iterator[str]:
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.param_type_name == "option"]
    yield from (f"## {code(name)}", "", _marked(cleandoc(command.help)), "")
    parts = [*map(_placeholder, arguments), *(["[OPTIONS]"] if options else [])]
    if hasattr(command, "commands"):
        parts.append("[COMMAND …]" if command.invoke_without_command else "COMMAND …")
    usage = " ".join([name, *parts])
    yield from ("```text", usage, "```", "")
    yield from table(["argument", "what"], [(code(_named(a)), _told(a)) for a in arguments])
    yield from table(["option", "what"], [(_spelled(each), _told(each)) for each in options])


def _named(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper())


def _placeholder(argument: Any) -> str:
    return _named(argument) if argument.required else f"[{_named(argument)}]"


def _spelled(option: Any) -> str:
    names = ", ".join(map(code, (*option.opts, *option.secondary_opts)))
    return names if option.is_flag else f"{names} {_value(option)}"


def _value(option: Any) -> str:
    """Return what stands for an option's value."""
    kind = option.type_descriptor.annotation
    if isinstance(kind, type) and issubclass(kind, Enum):
        return "|".join(each.value for each in kind)
    return str(option.metavar or VALUES.get(kind, "TEXT"))


def _told(parameter: Any) -> str:
    """Return what a parameter is for, with its default."""
    shown = getattr(parameter, "show_default", True)
    default = shown if isinstance(shown, str) else parameter.default
    if callable(default) or default in (None, False, (), []) or shown is False:
        return cell(_marked(parameter.help))
    return cell(_marked(f"{parameter.help} Default: {getattr(default, 'value', default)}"))


def _marked(text: str) -> str:
    """Return text in which options and variables are marked as code, where they are not yet."""
    return re.sub(r"(?<![`\w-])(--[a-z][a-z-]*|LEDGER_[A-Z_]+)(?![`\w])", r"`\1`", text)
