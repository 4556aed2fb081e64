"""A folder, a glob and a manifest become the items that a person means, each with one name."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from axs_lib.batch.items import Item, list_items
from axs_lib.batch.manifest import ManifestWarning
from axs_lib.errors import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    names = ("a.npz", "sub/b.npz", "c_s1.tif", "c_opt_v2.tif", "d_s1.pt", "note.txt", "c_mask.tif", ".hidden.npz")
    for name in names:
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "in"


def test_a_folder_at_any_depth(folder: Path) -> None:
    with pytest.warns(ManifestWarning, match=r"1 image of .* left out, for example .*c_mask\.tif; give masks by"):
        items = list_items(folder)
    assert items == [
        Item("a", str(folder / "a.npz")),
        Item("c", str(folder / "c_s1.tif"), str(folder / "c_opt_v2.tif")),
        Item("d", str(folder / "d_s1.pt"), str(folder / "d_opt_v2.pt")),  # missing, so it fails when its turn comes
        Item("sub/b", str(folder / "sub" / "b.npz")),
    ]
    assert [item.opt_v2 for item in list_items(folder, "pipeline")] == [None] * 4


def test_outputs_inside_the_folder_are_no_inputs(folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "a.npz").touch()
    assert [item.id for item in list_items(folder, outputs=[folder / "out"])] == ["a", "c", "d", "sub/b"]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [("*.npz", ["a"]), ("**/*.npz", ["a", "sub/b"]), ("s*/b.npz", ["sub/b"]), ("sub/*", ["b"]), ("a.npz", ["a"])],
)
def test_a_glob_names_its_items(folder: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, names: list[str]) -> None:
    assert [item.id for item in list_items(folder / pattern)] == names
    monkeypatch.chdir(folder)
    relative = list_items(pattern)
    assert [item.id for item in relative] == names
    assert all(os.path.isabs(item.s1) for item in relative)  # noqa: PTH117


def test_a_csv_manifest(folder: Path) -> None:
    manifest = folder / "list.csv"
    manifest.write_text(
        "id,s1,opt_v2,mask,date,lat,lon,biome\nx/y,c_s1.tif,c_opt_v2.tif,m.tif,2021-07-14,48.2,,4\n,a.npz,,,,,,\n"
    )
    assert list_items(manifest) == [
        Item("a", str(folder / "a.npz")),
        Item(
            "x/y", str(folder / "c_s1.tif"), str(folder / "c_opt_v2.tif"), {"date": "2021-07-14"}, str(folder / "m.tif")
        ),
    ]
    assert list_items(manifest, "pipeline")[1] == Item(
        "x/y", str(folder / "c_s1.tif"), None, {"date": "2021-07-14", "lat": 48.2, "biome": 4.0}
    )


def test_a_parquet_manifest(folder: Path) -> None:
    manifest = folder.parent / "list.parquet"
    table = {"path": ["in/a.npz", str(folder / "sub" / "b.npz")], "lat": [None, 48.2]}
    parquet.write_table(pyarrow.table(table), manifest)
    assert list_items(manifest, "pipeline") == [
        Item("a", str(folder / "a.npz")),
        Item("b", str(folder / "sub" / "b.npz"), None, {"lat": 48.2}),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,file\nx,a.npz\n", "has the columns id, file, and axs batch does not know 'file'; expected path"),
        ("path,id\na.npz,x\nsub/b.npz,x\n", "1 name.s. stand for more than one tile"),
        ("path,id\na.npz,../x\n", "row 1 has the id '../x'"),
        ("path,id\na.npz,/x\n", "row 1 has the id '/x'"),
        ("path,id\na.npz,x\n,y\n", "row 2 names no file"),
        ("path,id\na.npz,manifest.parquet/k\n", "row 1 has the id 'manifest.parquet/k'"),
        (f"path,id\na.npz,{'x' * 300}\n", "row 1 has the id 'x+'; expected parts of at most 250 bytes"),
        ("path,id\na.npz,x\0y\n", "cannot be read as CSV .it holds NUL"),
        ('path,id\n"a.npz"z,x\n', "cannot be read as CSV"),
        ("path,id\na.npz,x,y\n", "row 1 has more cells than the header"),
        ("path,masks\na.npz,m.tif\n", "does not know 'masks'; .* remove or rename"),
        ("path,path\na.npz,b.npz\n", "columns path, path; expected each of them once"),
        ("path\n", "holds no tile"),
        ("", "holds no tile"),
    ],
)
def test_a_manifest_that_cannot_be(folder: Path, content: str, message: str) -> None:
    (folder / "list.csv").write_text(content)
    with pytest.raises(InputError, match=message):
        list_items(folder / "list.csv")


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"t\xff\xe9")
    (tmp_path / "list.csv").write_bytes(b"path\nin/t\xff\xe9.npz\n")
    assert list_items(tmp_path / "list.csv") == [Item(name, str(tmp_path / "in" / f"{name}.npz"))]


def test_what_is_not_there_or_cannot_be_read(tmp_path: Path) -> None:
    table = pyarrow.table({"path": ["a.npz"] * 1_000_000})
    parquet.write_table(table, tmp_path / "rows.parquet", compression="zstd")
    os.mkfifo(tmp_path / "pipe.csv")
    os.mkfifo(tmp_path / "pipe.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "bad.csv").write_bytes(b"\xff\xfe\x00")
    for name, message in (
        ("no", "holds no tile"),
        ("*.npz", "holds no tile"),
        ("no.csv", "does not exist"),
        ("bad.parquet", "cannot be read as parquet"),
        ("bad.csv", "cannot be read as CSV"),
        ("rows.parquet", "1,000,000 rows, more than it has bytes"),
        ("pipe.csv", "the manifest .* is a named pipe"),
        ("pipe.parquet", "the manifest .* is a named pipe"),
    ):
        with pytest.raises(InputError, match=message):
            list_items(tmp_path / name)
    (tmp_path / "manifest.parquet").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"would replace the input .*manifest\.parquet"):
        list_items(tmp_path / "manifest.parquet", outputs=[tmp_path])
