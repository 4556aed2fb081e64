"""Metadata means what it says: one sample's day, place and biome, or "unknown", or an error that says why."""

from __future__ import annotations

import datetime
import math

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from axs_lib.errors import InputError
from axs_lib.prithvi.metadata import (
    BIOMES,
    METADATA_KEYS,
    UNKNOWN_BIOME,
    YEARS,
    Metadata,
    encode_metadata,
    parse_metadata,
)

TIMES = {"year": YEARS, "month": (1, 12), "day_of_year": (1, 366)}
LIMITS = TIMES | {"lat": (-90, 90), "lon": (-180, 180), "biome": (1, 14)}
dates = st.dates(datetime.date(YEARS[0], 1, 1), datetime.date(YEARS[1], 12, 31))


def told(date: datetime.date) -> dict[str, object]:
    """Every way to say a date."""
    return {"date": date.isoformat(), "year": date.year, "month": date.month, "day_of_year": date.timetuple().tm_yday}


@given(dates, st.sets(st.sampled_from(sorted(TIMES))), st.integers(0, 2))
def test_a_date_is_its_year_and_day_however_it_is_said(date: datetime.date, beside: set[str], form: int) -> None:
    said = {key: value for key, value in told(date).items() if key in beside}
    moment = datetime.datetime.combine(date, datetime.time(10, 20), datetime.UTC)
    said["date"] = (date, moment, moment.isoformat())[form]
    expected = Metadata(date.year, date.timetuple().tm_yday)
    assert parse_metadata(said) == expected
    assert parse_metadata({key: value for key, value in told(date).items() if key != "date"}) == expected


@given(dates, st.sampled_from(sorted(TIMES)), st.integers(1, 200))
def test_contradictions_are_refused(date: datetime.date, key: str, by: int) -> None:
    said = told(date)
    highest = {"year": YEARS[1], "month": 12, "day_of_year": 365}[key]
    wrong = max(LIMITS[key][0], (int(str(said[key])) + by - 1) % highest + 1)
    assume(wrong != said[key])
    with pytest.raises(InputError, match="is inconsistent"):
        parse_metadata({"date": said["date"], key: wrong})


@given(st.integers(1, 366), st.integers(1, 12))
@example(366, 1)
def test_month_and_day_of_year_agree_or_are_refused(day: int, month: int) -> None:
    days = [datetime.date(y, 1, 1) + datetime.timedelta(day - 1) for y in (2020, 2021)]
    months = {each.month for each, y in zip(days, (2020, 2021), strict=True) if each.year == y}
    if month in months:
        assert parse_metadata({"day_of_year": day, "month": month}).day_of_year == day
    else:
        with pytest.raises(InputError, match=f"{day} lies in month"):
            parse_metadata({"day_of_year": day, "month": month})


@given(st.one_of(st.none(), st.integers(*YEARS)), st.integers(1, 12))
def test_a_month_alone_is_its_middle(year: int | None, month: int) -> None:
    parsed = parse_metadata({"year": year, "month": month})
    expected = datetime.date(year or 2021, month, 15).timetuple().tm_yday
    assert (parsed.year, parsed.day_of_year) == (year, expected)


@given(st.sampled_from(sorted(LIMITS)), st.floats(allow_nan=True, allow_infinity=True))
def test_a_number_is_kept_or_refused_by_name(key: str, value: float) -> None:
    low, high = LIMITS[key]
    if low <= value <= high and (key in ("lat", "lon") or value == int(value)):
        parse_metadata({key: value})
    else:
        with pytest.raises(InputError, match=key):
            parse_metadata({key: value})


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"month": 13}, "month is 13; expected a number, 1 to 12"),
        ({"lat": 91}, "lat is 91; expected a number, -90 to 90"),
        ({"lon": 200}, "subtract 360"),
        ({"day_of_year": 366, "year": 2021}, "2021 has 365 days"),
        ({"date": "1800-01-01"}, "expected a year"),
        ({"date": "2021-02-30"}, "a day that exists"),
        ({"date": 20210714}, "date is a int"),
        ({"lat": "48"}, "lat is '48'; expected a number"),
        ({"lat": True}, "lat is True; expected a number"),
        ({"lat": [1.0, 2.0]}, r"lat is \[1\.0, 2\.0\]; expected a number"),
        ({"day": 3}, "unknown key 'day'"),
        ({"latt": 3}, "Did you mean 'lat'"),
        ({"biome": "Tundras"}, "Did you mean 'tundra'"),
        ({"biome": 0}, "biome is 0"),
    ],
)
def test_wrong_values_say_what_is_wrong(metadata: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_metadata(metadata)


def test_biomes_by_name_and_number() -> None:
    assert len(BIOMES) == 14
    for number, name in enumerate(BIOMES, start=1):
        assert parse_metadata({"biome": number}).biome == number
        assert parse_metadata({"biome": name}).biome == number
    assert parse_metadata({"biome": "boreal forests/taiga"}).biome == 6
    assert parse_metadata({"biome": "Temperate Broadleaf & Mixed Forests"}).biome == 4


@given(st.sets(st.sampled_from(METADATA_KEYS)))
def test_what_is_not_said_is_unknown(keys: set[str]) -> None:
    """None and absence are the same, and one key never tells another."""
    whole = told(datetime.date(2021, 7, 14)) | {"lat": 48.2, "lon": 16.4, "biome": 4}
    said = {key: whole[key] for key in keys}
    parsed = parse_metadata(said)
    assert parsed == parse_metadata({key: said.get(key) for key in METADATA_KEYS})
    assert (parsed.year is None) == keys.isdisjoint({"date", "year"})
    assert (parsed.day_of_year is None) == keys.isdisjoint({"date", "month", "day_of_year"})
    assert ((parsed.lat is None), (parsed.lon is None)) == ("lat" not in keys, "lon" not in keys)
    assert (parsed.biome == UNKNOWN_BIOME) == ("biome" not in keys)


def test_a_batch_takes_none_one_or_one_each() -> None:
    one = {"date": "2021-07-14", "lat": 48.2, "lon": 16.4, "biome": "Tundra"}
    shared = encode_metadata(one, 3)
    each = encode_metadata([one, None, {"lon": -3.0}], 3)
    nothing = encode_metadata(None, 3)
    assert shared.temporal.tolist() == [[2021.0, 195.0]] * 3 and shared.temporal.dtype == torch.float32
    assert torch.allclose(shared.location, torch.tensor([[48.2, 16.4]]).expand(3, 2))
    assert shared.biome.tolist() == [11, 11, 11]
    assert torch.equal(each.temporal[0], shared.temporal[0]) and each.temporal[1:].isnan().all()
    assert each.location[1].isnan().all() and math.isnan(each.location[2, 0]) and each.location[2, 1] == -3.0
    assert nothing.temporal.isnan().all() and nothing.location.isnan().all()
    assert nothing.biome.tolist() == [UNKNOWN_BIOME] * 3


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        *[(wrong, "metadata") for wrong in ([{}], [{}, {}, {}], "ab", ["a", "b"], 7, [{}, 3])],
        ([{}, {"lat": 91}], r"metadata\[1\]: lat is 91"),
    ],
)
def test_a_wrong_count_or_kind_is_refused(metadata: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        encode_metadata(metadata, 2)  # type: ignore[arg-type]


def test_dropping_forgets_whole_facts_and_no_others() -> None:
    known = encode_metadata({"date": "2021-07-14", "lat": 48.2, "lon": 16.4, "biome": 4}, 400)
    dropped = known.drop(0.3)
    for before, after in ((known.temporal, dropped.temporal), (known.location, dropped.location)):
        gone = after.isnan().all(1)
        assert 0.15 < gone.float().mean() < 0.45 and torch.equal(after[~gone], before[~gone])
        assert torch.equal(gone, after.isnan().any(1))
    assert set(dropped.biome.tolist()) == {0, 4} and torch.equal(known.drop(0.0).temporal, known.temporal)
