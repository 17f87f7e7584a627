"""References on the command line and in Python: folders of models stand for their models."""

from __future__ import annotations

from pathlib import Path

from starzoo.workflows.refs import expand_refs


def test_a_folder_of_members_stands_for_its_members(tmp_path: Path) -> None:
    for name in ("zoo/seed-10", "zoo/seed-2", "zoo/seed-2b", "single"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "config.json").touch()
    (tmp_path / "zoo" / "notes").mkdir()
    refs = expand_refs([str(tmp_path / "zoo"), str(tmp_path / "single"), "user/repo"])
    names = [f"{tmp_path}/zoo/{name}" for name in ("seed-2", "seed-2b", "seed-10")]
    assert refs == [*names, f"{tmp_path}/single", "user/repo"]


def test_a_star_beside_its_members_is_none_of_them(tmp_path: Path) -> None:
    for name in ("seed-0", "seed-1", "star"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").touch()
    (tmp_path / "star" / "star.json").touch()
    assert expand_refs([str(tmp_path)]) == [str(tmp_path / "seed-0"), str(tmp_path / "seed-1")]
    assert expand_refs([str(tmp_path / "star")]) == [str(tmp_path / "star")]  # asked for by name


def test_an_empty_folder_stays_for_the_library_to_refuse(tmp_path: Path) -> None:
    assert expand_refs([str(tmp_path)]) == [str(tmp_path)]
