"""Units for people."""

import pytest

from mlops.units import Accelerators, parse_duration, parse_money, render_money

MONEY = {"2000 USD": 2_000_000_000, "0.05 USD": 50_000, "1_000 USD": 1_000_000_000, "0.000001 USD": 1}
BAD_MONEY = ["2000", "-5 USD", "1 EUR", "0.0000001 USD", 5, None]
DURATIONS = {"90s": 90, "15min": 900, "15m": 900, "2h": 7200, "1.5d": 129_600, "1w": 604_800}


@pytest.mark.parametrize(("text", "micro"), MONEY.items())
def test_money_is_whole_micro_usd(text: str, micro: int) -> None:
    assert parse_money(text) == micro
    assert parse_money(render_money(micro)) == micro


@pytest.mark.parametrize("text", BAD_MONEY)
def test_what_is_not_money_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="USD"):
        parse_money(text)


@pytest.mark.parametrize(("text", "seconds"), DURATIONS.items())
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["5", "h", "-1h", "1y", 3])
def test_what_is_no_duration_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)


def test_accelerators() -> None:
    assert Accelerators.parse("8xh100") == Accelerators(kind="h100", count=8)
    assert Accelerators.parse("0.5xcpu").count == 0.5
    assert str(Accelerators.parse("1xtpu-v5e-8")) == "1xtpu-v5e-8"
    for bad in ("h100", "0xh100", "1.5xh100", "-1xcpu", 8):
        with pytest.raises(ValueError, match=r"accelerator|divided"):
            Accelerators.parse(bad)
