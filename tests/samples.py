"""Stored samples of every version of every event type, and the record of their fields.

    python -m tests.samples write     add those of new types, new versions and new optional fields
    python -m tests.samples check     say what is wrong

A sample is what some journal holds for ever, so that it is never changed: `write` only adds, and
refuses where a type was changed in a way that stored events do not survive.
"""

from __future__ import annotations

import json
import sys
import typing
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_OID, UUID, uuid5

import msgspec

import ledger.domain  # noqa: F401 - registers the event types
from ledger.amounts import PlainDecimal
from ledger.codec import decode_bodies, encode_event
from ledger.errors import LedgerError
from ledger.event import Event, alternatives, event_types, personal_fields, upcaster_of

FOLDER = Path(__file__).parent / "ledger" / "samples"
RECORD = "fields.json"
ADVICE = "run `python -m tests.samples write`"
AT = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)

Types = Mapping[str, type[Event]]
Shape = dict[str, dict[str, Any]]
"""A version's fields: for each the text of its type, its default's JSON, and an enum's values.

A personal field is marked.
"""


class IncompatibleChange(LedgerError):
    """An event type was changed in a way that stored events do not survive."""


def domain_types() -> dict[str, type[Event]]:
    """Return the event types of the domain, by name."""
    return {
        name: known
        for name, known in sorted(event_types().items())
        if known.__module__.startswith("ledger.domain")
    }


def shape_of(struct: type[msgspec.Struct]) -> Shape:
    """Return what the fields of a type are today."""
    hints = typing.get_type_hints(struct)
    shape = {
        each.name: _described(each, hints[each.name]) for each in msgspec.structs.fields(struct)
    }
    for name in personal_fields(struct):
        shape[name]["personal"] = True
    return shape


def _described(field: msgspec.structs.FieldInfo, hint: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"type": _type_text(hint)}
    if not field.required:
        found["default"] = _default_of(field)
    if values := [member.value for each in _enums(hint) for member in each]:
        found["values"] = values
    return found


def _type_text(hint: Any) -> str:
    """Return a type as text that is the same in every release of Python."""
    options = alternatives(hint)
    if len(options) > 1:
        return " | ".join(map(_type_text, options))
    if arguments := typing.get_args(hint):
        inner = ", ".join("..." if each is Ellipsis else _type_text(each) for each in arguments)
        return f"{typing.get_origin(hint).__name__}[{inner}]"
    if hint is type(None):
        return "None"
    if issubclass(hint, msgspec.Struct):
        return f"{hint.__name__}({json.dumps(shape_of(hint))})"
    return str(hint.__name__)


def _enums(hint: Any) -> list[type[Enum]]:
    return [
        each for each in alternatives(hint) if isinstance(each, type) and issubclass(each, Enum)
    ]


def _default_of(field: msgspec.structs.FieldInfo) -> Any:
    default = field.default
    if field.default_factory is not msgspec.NODEFAULT:
        default = field.default_factory()
    return msgspec.json.decode(msgspec.json.encode(default, enc_hook=str))


def sample(known: type[Event], *, full: bool) -> bytes:
    """Return a body of today's version, with all fields or with the required ones alone."""
    hints = typing.get_type_hints(known)
    values = {
        each.name: _value(known.__name__, each, hints[each.name])
        for each in msgspec.structs.fields(known)
        if full or each.required
    }
    return encode_event(known(**values))


def _value(event: str, field: msgspec.structs.FieldInfo, hint: Any) -> Any:
    """Return a value that differs from the field's default and is the same at any time."""
    kind = next(each for each in alternatives(hint) if each is not type(None))
    origin = typing.get_origin(kind)
    if origin is not None:
        many = f"{field.name} ä", f'{field.name} "2"'
        return dict([many]) if origin is dict else origin(many)
    if issubclass(kind, Enum):
        return [member for member in kind if member != field.default][-1]
    if issubclass(kind, PlainDecimal):
        return kind("1234.56789")
    plain: dict[type, Any] = {
        UUID: uuid5(NAMESPACE_OID, f"{event}.{field.name}"),
        datetime: AT,
        bool: field.default is not True,
        int: 7,
        str: f'{field.name} "ä"',
    }
    return plain[kind]


def file_of(folder: Path, name: str, version: int) -> Path:
    """Return the file that holds the samples of one version, one body a line."""
    return folder / f"{name}.v{version}.json"


def problems(types: Types, folder: Path) -> list[str]:
    """Return what is wrong with samples, record and upcasters, in words that say what to do."""
    record = _read_record(folder)
    found = [problem for known in types.values() for problem in _problems_of(known, folder, record)]
    return found + list(_gone(types, folder, record))


def _read_record(folder: Path) -> dict[str, dict[str, Shape]]:
    """Return the recorded fields, by type and version."""
    file = folder / RECORD
    if not file.exists():
        return {}
    record: dict[str, dict[str, Shape]] = json.loads(file.read_text(encoding="utf-8"))
    return record


def _problems_of(
    known: type[Event], folder: Path, record: Mapping[str, Mapping[str, Shape]]
) -> Iterator[str]:
    name, today = known.__name__, known.schema_version
    for version in range(1, today + 1):
        if not file_of(folder, name, version).exists():
            yield f"{name}: there is no sample of version {version}; {ADVICE}"
        elif problem := undecodable(known, version, folder):
            yield problem
        if version < today and upcaster_of(known, version) is None:
            yield f"{name}: version {version} has no upcaster; see docs/evolve-events.md"
    recorded = record.get(name, {})
    yield from (f"{name}: {each}" for each in changes(recorded.get(str(today)), shape_of(known)))
    yield from (
        f"{name}: version {version} is recorded, but the type is at {today}; versions only grow"
        for version in recorded
        if int(version) > today
    )


def undecodable(known: type[Event], version: int, folder: Path) -> str | None:
    """Return what is wrong with the samples of one version, None where they all decode."""
    file = file_of(folder, known.__name__, version)
    bodies = file.read_bytes().splitlines()
    try:
        events = decode_bodies(bodies, range(len(bodies)), [version] * len(bodies))
    except LedgerError as error:
        return f"{file.name}: line {getattr(error, 'offset', 0) + 1} no longer decodes: {error}"
    if not events or any(type(each) is not known for each in events):
        return f"{file.name}: holds something else than {known.__name__}"
    if version == known.schema_version and list(map(encode_event, events)) != bodies:
        return f"{file.name}: encoding again gives other bytes than are stored"
    return None


def changes(recorded: Shape | None, present: Shape) -> list[str]:
    """Return in which ways a version's fields are other than was recorded."""
    if recorded is None:
        return [f"its fields are not recorded; {ADVICE}"]
    return breaking(recorded, present) or [
        f"field {name!r} is not recorded as it is now; {ADVICE}"
        for name in present
        if recorded.get(name) != present[name]
    ]


def breaking(recorded: Shape, present: Shape) -> list[str]:
    """Return the changes that stored events of the same version do not survive."""
    found = [_change_of(name, recorded[name], present.get(name)) for name in recorded]
    found += [_addition_of(name, present[name]) for name in present if name not in recorded]
    return [f"{each}, without a new schema_version" for each in found if each is not None]


def _change_of(name: str, before: Mapping[str, Any], after: Mapping[str, Any] | None) -> str | None:
    if after is None:
        return f"field {name!r} was taken away"
    if after["type"] not in (before["type"], f"{before['type']} | None"):
        return f"field {name!r} was {before['type']} and is {after['type']}"
    if before.get("personal") and not after.get("personal"):
        return f"field {name!r} is no longer personal: what is stored of it is encrypted"
    if ("default" in before, before.get("default")) != ("default" in after, after.get("default")):
        return f"field {name!r} has another default"
    lost = set(before.get("values", ())) - set(after.get("values", ()))
    return f"field {name!r} may no longer be {min(lost)!r}" if lost else None


def _addition_of(name: str, field: Mapping[str, Any]) -> str | None:
    if "default" not in field:
        return f"field {name!r} is new and has no default"
    return f"field {name!r} is new and its default says something" if field["default"] else None


def _gone(types: Types, folder: Path, record: Iterable[str]) -> Iterator[str]:
    stored = {file.name.partition(".v")[0] for file in folder.glob("*.v*.json")}
    for name in sorted((stored | set(record)) - set(types)):
        yield f"{name}: stored events of it cannot be read; keep the type and set `retired`"


def write(types: Types, folder: Path) -> list[str]:
    """Add what is missing of today's versions; return the names of the files that were changed.

    Raises IncompatibleChange, and then changes nothing.
    """
    record = _read_record(folder)
    wrong = {name: _refusal(known, record.get(name, {})) for name, known in types.items()}
    if reasons := [f"{name}: {each}" for name, found in wrong.items() for each in found]:
        raise IncompatibleChange("; ".join(reasons) + "; see docs/evolve-events.md")
    changed = [name for known in types.values() if (name := _add(known, folder, record))]
    if changed:
        text = json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False)
        (folder / RECORD).write_text(text + "\n", encoding="utf-8")
    return changed


def _refusal(known: type[Event], recorded: Mapping[str, Shape]) -> list[str]:
    before = recorded.get(str(known.schema_version))
    return [] if before is None else breaking(before, shape_of(known))


def _add(known: type[Event], folder: Path, record: dict[str, dict[str, Shape]]) -> str | None:
    """Record a type's fields and add its samples, unless all is there; return the file's name."""
    name, present = known.__name__, shape_of(known)
    recorded = record.setdefault(name, {})
    file = file_of(folder, name, known.schema_version)
    if recorded.get(str(known.schema_version)) == present and file.exists():
        return None
    recorded[str(known.schema_version)] = present
    lines = file.read_bytes().splitlines() if file.exists() else []
    made = [sample(known, full=False), sample(known, full=True)]
    lines += [line for line in dict.fromkeys(made) if line not in lines]
    file.write_bytes(b"".join(line + b"\n" for line in lines))
    return file.name


def main(arguments: list[str]) -> int:
    """Run the command; return its exit code."""
    if arguments == ["write"]:
        try:
            changed = write(domain_types(), FOLDER)
        except IncompatibleChange as error:
            print(error, file=sys.stderr)
            return 1
        print("\n".join(changed) or "nothing to add")
    elif arguments != ["check"]:
        print(__doc__, file=sys.stderr)
        return 2
    found = problems(domain_types(), FOLDER)
    print("\n".join(found) or "all samples are as they should be")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
