"""Units for people in project files: `2h`, `2000 USD`, `8xh100`; whole microseconds and micro-USD inside.

Each type declares its JSON schema, so that editors can check the files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any

from pydantic import BeforeValidator, GetCoreSchemaHandler, GetJsonSchemaHandler, WithJsonSchema
from pydantic_core import CoreSchema, core_schema

_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(s|min|m|h|d|w)\s*")
_MONEY = re.compile(r"\s*(\d[\d_,]*(?:\.\d+)?)\s*USD\s*")
_SHAPE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*[x×]\s*([a-z][a-z0-9-]*)\s*")
MICRO_USD = 1_000_000
MOST_USD = 10**12
"""What a ledger's 64-bit sums hold with room to spare."""


def parse_duration(text: object) -> float:
    """`90s`, `15min`, `2h`, `1.5d` to seconds.

    Raises:
        ValueError: Not a duration, with an example.
    """
    match = _DURATION.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"{text!r} is not a duration; write for instance 90s, 15min, 2h or 7d")
    return float(match[1]) * _SECONDS[match[2]]


def parse_money(text: object) -> int:
    """`2000 USD`, `0.05 USD` to integer micro-USD.

    Raises:
        ValueError: Not an amount, finer than a micro-USD, or more than `MOST_USD`.
    """
    match = _MONEY.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"{text!r} is not an amount of money; write for instance 2000 USD or 0.05 USD")
    try:
        micro = Decimal(match[1].replace("_", "").replace(",", "")) * MICRO_USD
    except InvalidOperation as error:
        raise ValueError(f"{text!r} is not an amount of money") from error
    if micro != micro.to_integral_value():
        raise ValueError(f"{text!r} is finer than one micro-USD (six digits after the point)")
    if micro > MOST_USD * MICRO_USD:
        raise ValueError(f"{text!r} is more than {MOST_USD:,} USD")
    return int(micro)


def render_money(micro_usd: int) -> str:
    """Micro-USD to `12.34 USD`, with up to six digits where cents would hide the amount."""
    amount = Decimal(micro_usd) / MICRO_USD
    if micro_usd % 10_000 == 0:
        return f"{amount:.2f} USD"
    return f"{amount:.6f}".rstrip("0") + " USD"


Duration = Annotated[
    float,
    BeforeValidator(parse_duration),
    WithJsonSchema({"type": "string", "pattern": _DURATION.pattern, "examples": ["15min"]}),
]
"""Seconds, written as `2h`."""

Money = Annotated[
    int,
    BeforeValidator(parse_money),
    WithJsonSchema({"type": "string", "pattern": _MONEY.pattern, "examples": ["2000 USD"]}),
]
"""Micro-USD, written as `2000 USD`."""


@dataclass(frozen=True)
class Accelerators:
    """A number of accelerators of one kind, written as `8xh100`; `cpu` may be fractional (`0.5xcpu`)."""

    kind: str
    count: float

    @classmethod
    def parse(cls, text: object) -> Accelerators:
        """`8xh100` to a value.

        Raises:
            ValueError: Not of that form, zero, or a fraction of an indivisible kind.
        """
        if isinstance(text, cls):
            return text
        match = _SHAPE.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise ValueError(f"{text!r} is not a number of accelerators; write for instance 8xh100 or 0.5xcpu")
        count, kind = float(match[1]), match[2]
        if count <= 0:
            raise ValueError(f"{text!r} asks for no accelerator at all")
        if kind != "cpu" and count != int(count):
            raise ValueError(f"{text!r}: {kind} cannot be divided")
        return cls(kind=kind, count=count)

    def __str__(self) -> str:
        return f"{self.count:g}x{self.kind}"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.parse, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "pattern": _SHAPE.pattern, "examples": ["8xh100"]}
