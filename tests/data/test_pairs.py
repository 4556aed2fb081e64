"""Reading folders of pairs: index or none, nodata, broken files by name, folds by group."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from axs_lib.data.pairs import PairRecord, list_pairs, load_pair, split_groups
from axs_lib.errors import InputError


def arrays(height: int = 16, width: int = 12) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "s1": rng.normal(-12, 3, (2, height, width)).astype(np.float32),
        "s2": rng.integers(100, 3000, (4, height, width)).astype(np.uint16),
    }


def write(path: Path, **content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **content)
    return path


@pytest.fixture
def indexed(tmp_path: Path) -> Path:
    rows = ["source,id,group,quality,level,h,w,note"]
    for tile, group, quality in (("b", "g1", "ok"), ("a", "g1", "ok"), ("c", "g2", "cloud"), ("d", "g3", "bad")):
        write(tmp_path / "pairs" / "src" / f"{tile}.npz", **arrays())
        rows.append(f'src,{tile},{group},{quality},L2A,16,12,"a note, with a comma"')
    (tmp_path / "index.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def test_index_is_followed(indexed: Path) -> None:
    records = list_pairs(indexed)
    assert [record.name for record in records] == ["src/a", "src/b"]
    first = records[0]
    assert (first.group, first.level, first.height, first.width, first.pixels) == ("g1", "L2A", 16, 12, 192)
    assert first.note == "a note, with a comma"
    assert [record.id for record in list_pairs(indexed, "all")] == ["a", "b", "c"]
    (indexed / "index.csv").write_text("\ufeffsource,id\nsrc,a\n")  # as spreadsheets write it
    (record,) = list_pairs(indexed)
    assert (record.group, record.quality, record.height, record.width) == ("src/a", "ok", 16, 12)


def test_folder_without_index_takes_every_npz(tmp_path: Path) -> None:
    write(tmp_path / "one.npz", **arrays())
    write(tmp_path / "deep" / "er" / "two.npz", **arrays(20, 24))
    records = list_pairs(tmp_path)
    assert [record.name for record in records] == ["deep/er/two", f"{tmp_path.name}/one"]
    assert (records[0].height, records[0].width, records[0].quality) == (20, 24, "ok")
    assert len({record.group for record in records}) == 2


def test_pair_is_float32_with_nan_nodata(tmp_path: Path) -> None:
    content = arrays()
    content["s1"][:, 0, 0] = np.nan
    content["s2"][:, 3, 4] = 0
    content["s2"][1, 5, 6] = 0
    pair = load_pair(write(tmp_path / "a.npz", **content))
    assert pair.s1.dtype == pair.s2.dtype == np.float32 and np.isnan(pair.s1[:, 0, 0]).all()
    assert np.isnan(pair.s2[:, 3, 4]).all()
    assert pair.s2[1, 5, 6] == 1, "0 in one band only is a dark pixel, not nodata"
    assert np.isnan(pair.s2).sum() == 4 and pair.opt_v2 is None and pair.s2_cloudy is None
    assert np.array_equal(pair.s2[0, 8], content["s2"][0, 8].astype(np.float32))


def test_optional_images_and_the_documents_own_keys(tmp_path: Path) -> None:
    content = arrays()
    vv, vh = content["s1"]
    opt_v2 = content["s2"].astype(np.float64) + 5
    pair = load_pair(
        write(tmp_path / "a.npz", s1_vv=vv, s1_vh=vh, s2_real=content["s2"], opt_v2=opt_v2, s2_cloudy=content["s2"])
    )
    assert np.array_equal(pair.s1, content["s1"]) and pair.opt_v2 is not None
    assert np.array_equal(pair.opt_v2, opt_v2.astype(np.float32)) and pair.s2_cloudy is not None


BROKEN = {
    "no sar": ({"s2": arrays()["s2"]}, "expected s1"),
    "no truth": ({"s1": arrays()["s1"], "other": np.zeros(3)}, "holds s1, other; expected s2"),
    "bands": ({**arrays(), "s2": np.ones((3, 16, 12))}, r"s2 has shape \(3, 16, 12\); expected \(4,H,W\)"),
    "size": ({**arrays(), "s2": np.ones((4, 16, 16))}, "one grid"),
    "opt_v2 size": ({**arrays(), "opt_v2": np.ones((4, 8, 8))}, "opt_v2 is"),
    "infinite": ({**arrays(), "s1": np.full((2, 16, 12), -np.inf)}, "384 infinite"),
    "complex": ({**arrays(), "s1": np.ones((2, 16, 12), complex)}, "holds complex128"),
    "empty": ({"s1": np.ones((2, 0, 12)), "s2": np.ones((4, 0, 12))}, "not empty"),
    "negative": ({**arrays(), "s2": np.full((4, 16, 12), -1.0)}, "runs from -1"),
    "too bright": ({**arrays(), "s2": np.full((4, 16, 12), 7e4)}, "70000"),
    "pickled": ({**arrays(), "s2": np.array([{}], dtype=object)}, "pickle"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_pairs_are_named(tmp_path: Path, case: str) -> None:
    content, message = BROKEN[case]
    path = write(tmp_path / "the_tile.npz", **content)
    with pytest.raises(InputError, match=message) as caught:
        load_pair(path)
    assert "the_tile.npz" in str(caught.value)
    for content in (b"", b"not a zip", path.read_bytes()[:700]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"the_tile\.npz"):
            list_pairs(tmp_path)


def test_folders_without_pairs_are_named(tmp_path: Path, indexed: Path) -> None:
    with pytest.raises(InputError, match="no folder"):
        list_pairs(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no \*\.npz"):
        list_pairs(tmp_path / "empty")
    with pytest.raises(InputError, match="'fine'"):
        list_pairs(indexed, "fine")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="does not exist"):
        load_pair(tmp_path / "absent.npz")


def test_broken_indexes_are_named(indexed: Path) -> None:
    (indexed / "pairs" / "src" / "a.npz").unlink()
    with pytest.raises(InputError, match=r"lists src/a, but .*a\.npz does not exist"):
        list_pairs(indexed)
    for wrong, message in (
        (b"name,h\nx,1\n", "source and id missing"),
        (b"source,id,month\nsrc,../../../x,3\n", "names below"),
        (b"source,id,month\nsrc,b,x\n", "src/b: invalid literal"),
        (b"\xff\xfe\x00", "index"),
        (b"source,id,group\nsrc,b,M\xfcnchen\n", "another encoding"),
    ):
        (indexed / "index.csv").write_bytes(wrong)
        with pytest.raises(InputError, match=message):
            list_pairs(indexed)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"date": "2021-07-14", "lat": "48.2", "lon": "16.4"}, {"date": "2021-07-14", "lat": 48.2, "lon": 16.4}),
        ({"year": "2020", "month": "11"}, {"year": 2020, "month": 11}),
        ({"month": "3"}, {"month": 3}),
        ({"dates": "S1 20170612 / S2 20170613"}, {"date": "2017-06-13"}),
        ({"dates": "monthly composite 2020-11"}, {"year": 2020, "month": 11}),
        ({"dates": "monthly aggregate, month 0 (0=Sep)"}, {"month": 9}),
        ({"dates": "monthly aggregate, month 11 (0=Sep)"}, {"month": 8}),
        ({"place": "somewhere (45.67, 19.78)"}, {"lat": 45.67, "lon": 19.78}),
        ({"place": "Belgium (50.63N 5.33E)"}, {"lat": 50.63, "lon": 5.33}),
        ({"place": "Chile (33.5S 70.6W)"}, {"lat": -33.5, "lon": -70.6}),
        ({"place": "Finland (location withheld)", "dates": ""}, {}),
    ],
)
def test_when_and_where_are_read_from_the_index(
    tmp_path: Path, columns: dict[str, str], expected: dict[str, object]
) -> None:
    write(tmp_path / "pairs" / "src" / "a.npz", **arrays())
    names = ",".join(["source", "id", *columns])
    values = ",".join(["src", "a", *(f'"{value}"' for value in columns.values())])
    (tmp_path / "index.csv").write_text(f"{names}\n{values}\n")
    (record,) = list_pairs(tmp_path)
    assert record.metadata == expected


def records(sizes: dict[str, list[int]]) -> list[PairRecord]:
    return [
        PairRecord(path=Path(), source="s", id=f"{group}{i}", group=group, height=side, width=side)
        for group, sides in sizes.items()
        for i, side in enumerate(sides)
    ]


def test_folds_share_no_group_and_lose_no_pair() -> None:
    everything = records({f"g{i}": [64] * (1 + i % 4) for i in range(20)})
    folds = split_groups(everything, 5, seed=3)
    assert sorted(r.name for fold in folds for r in fold) == sorted(r.name for r in everything)
    groups = [{record.group for record in fold} for fold in folds]
    assert sum(len(group) for group in groups) == len(set().union(*groups))
    pixels = [sum(record.pixels for record in fold) for fold in folds]
    assert max(pixels) <= 1.3 * min(pixels)


def test_folds_depend_on_the_seed_and_not_on_the_order() -> None:
    everything = records({f"g{i}": [64] for i in range(20)})
    assert split_groups(everything, 4, seed=1) == split_groups(everything[::-1], 4, seed=1)
    assert split_groups(everything, 4, seed=1) != split_groups(everything, 4, seed=2)
    with pytest.raises(InputError, match="seed is -5; expected 0 or more"):
        split_groups(everything, 4, seed=-5)
    for folds in (0, 1, 4):
        with pytest.raises(InputError, match="3 groups"):
            split_groups(records({"a": [8], "b": [8], "c": [8]}), folds)
