from __future__ import annotations

import pytest

from starzoo.cli.parsing import expand_refs, parse_model_args, parse_seeds
from starzoo.errors import UsageError


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("0-9", list(range(10))),
        ("0,3,5-7", [0, 3, 5, 6, 7]),
        ("4", [4]),
        (" 2 , 0 - 1 ", [2, 0, 1]),
        ("3,1-3", [3, 1, 2]),
    ],
)
def test_seeds(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["x", "", "5-3", "-1", "1,,2", "0-9x", "1.5", "0-999999999", "0-10000", "٣"])
def test_wrong_seeds(text):
    with pytest.raises(UsageError, match="is no seed and no range of seeds"):
        parse_seeds(text)


def test_model_args():
    assert parse_model_args('{"stem_width": 16, "stem_type": "deep"}') == {"stem_width": 16, "stem_type": "deep"}
    assert parse_model_args(None) == {}


@pytest.mark.parametrize("text", ["{", "[1]", "3", "stem_width=16", "[" * 100_000])
def test_wrong_model_args(text):
    with pytest.raises(UsageError, match="is no JSON object"):
        parse_model_args(text)


def test_a_folder_of_members_stands_for_its_members(tmp_path):
    for name in ("zoo/seed-10", "zoo/seed-2", "zoo/seed-2b", "single"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "config.json").touch()
    (tmp_path / "zoo" / "notes").mkdir()
    found = expand_refs([str(tmp_path / "zoo"), str(tmp_path / "single"), "user/repo"])
    names = [f"{tmp_path}/zoo/{name}" for name in ("seed-2", "seed-2b", "seed-10")]
    assert found == [*names, f"{tmp_path}/single", "user/repo"]


def test_a_star_beside_its_members_is_none_of_them(tmp_path):
    for name in ("seed-0", "seed-1", "star"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").touch()
    (tmp_path / "star" / "star.json").touch()
    assert expand_refs([str(tmp_path)]) == [str(tmp_path / "seed-0"), str(tmp_path / "seed-1")]
    assert expand_refs([str(tmp_path / "star")]) == [str(tmp_path / "star")]  # asked for by name


def test_an_empty_folder_stays_for_the_library_to_refuse(tmp_path):
    assert expand_refs([str(tmp_path)]) == [str(tmp_path)]
