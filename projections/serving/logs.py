"""What the service logs: a line of JSON for each request, and all warnings, on standard error.

Names, keys, tokens, bodies and the values of queries are never logged. What looks like a secret all
the same is taken out of every line, by the name of a field and by its form.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, MutableMapping
from functools import lru_cache
from typing import Any, TextIO

import msgspec
import structlog
from structlog.typing import EventDict, Processor

REDACTED = "[redacted]"
_SECRET_NAME = re.compile(
    r"password|passwd|secret|token|authorization|cookie|credential|private|"
    r"api[-_]?key$|(^|_)key$|key[-_]hash|database_url|dsn",
    re.IGNORECASE,
)
_SECRET_FORM = re.compile(
    r"tlk_[0-9A-Za-z_]{16,}"  # an API key
    r"|lrt_[0-9A-Za-z_-]{16,}"  # a refresh token
    r"|eyJ[\w-]{6,}\.[\w-]+\.?[\w-]*"  # an access token
    r"|\$argon2\S+"
    r"|PRIVATE[+ ]KEY\S*"
    r"|(?<=://)[^/\s:@]*:[^/\s@]*(?=@)"  # user and password of an address
)
_OWN = ("ledger", "projections", "uvicorn", "uvicorn.error")
_NAMES = {"event": "message", "level": "level", "timestamp": "time"}

RequestLog = Callable[..., None]
"""Is called with a message and fields."""


def configure(stream: TextIO) -> RequestLog:
    """Log all that the process has to tell to a stream: in JSON, on a terminal for people.

    Returns what logs requests, by a shorter way than that of `logging`.
    """
    render: Processor = (
        structlog.dev.ConsoleRenderer() if stream.isatty() else _as_json
    )  # fmt: skip
    common: list[Processor] = [structlog.processors.TimeStamper(fmt="iso", utc=True), redact]
    _take_over(stream, common, render)
    logger = structlog.wrap_logger(
        structlog.WriteLogger(stream),
        processors=[structlog.processors.add_log_level, *common, render],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=True,
    ).bind()
    return logger.info  # type: ignore[no-any-return]


def _take_over(stream: TextIO, common: list[Processor], render: Processor) -> None:
    """Let what others log by `logging` look the same."""
    add = structlog.stdlib
    pre_chain: list[Processor] = [add.add_log_level, add.add_logger_name, add.ExtraAdder(), _plain]
    strip = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=pre_chain,
            processors=[strip, structlog.processors.format_exc_info, *common, render],
        )
    )
    logging.captureWarnings(capture=True)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in _OWN:
        logging.getLogger(name).setLevel(logging.INFO)


def _plain(_logger: Any, _method: str, fields: EventDict) -> EventDict:
    """Leave out what the server adds for terminals."""
    fields.pop("color_message", None)
    return fields


def to_logging(message: str, **fields: Any) -> None:
    """Log a request by `logging`, where nothing was configured."""
    logging.getLogger("projections.requests").info(message, extra=fields)


def redact(_logger: Any, _method: str, fields: EventDict) -> EventDict:
    """Take out what looks like a secret: the last line of defence, for what should not be there."""
    for name, value in fields.items():
        fields[name] = REDACTED if value and _is_secret(name) else _without_secrets(value)
    return fields


@lru_cache(4096)
def _is_secret(name: str) -> bool:
    return _SECRET_NAME.search(name) is not None


def _without_secrets(value: Any) -> Any:
    if isinstance(value, str):
        return _SECRET_FORM.sub(REDACTED, value)
    if isinstance(value, Mapping):
        return redact(None, "", {str(name): each for name, each in value.items()})
    if isinstance(value, list | tuple | set):
        return [_without_secrets(each) for each in value]
    return (
        value
        if value is None or isinstance(value, int | float)
        else _SECRET_FORM.sub(REDACTED, str(value))
    )


def _as_json(_logger: Any, _method: str, fields: MutableMapping[str, Any]) -> str:
    named = {_NAMES.get(name, name): value for name, value in fields.items()}
    return msgspec.json.encode(named, enc_hook=str).decode()
