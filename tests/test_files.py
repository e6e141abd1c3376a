"""A file appears whole or not at all; record/test_directory.py has the order on the disk, and the full disk."""

import pytest

from trd_ray.files import taking_place, write_atomically


def test_an_error_in_the_block_leaves_the_old_file_and_nothing_else(tmp_path):
    place = tmp_path / "kept"
    write_atomically(place, "old")
    with pytest.raises(RuntimeError, match="half way"), taking_place(place) as temporary:
        temporary.write_text("ne")
        raise RuntimeError("half way")
    assert [p.name for p in tmp_path.iterdir()] == ["kept"] and place.read_text() == "old"


def test_rivals_write_files_of_their_own_and_the_last_one_stays(tmp_path):
    place = tmp_path / "kept"
    with taking_place(place, rivals=True) as one:
        one.write_text("one")
        with taking_place(place, rivals=True) as other:
            other.write_text("other")
        assert place.read_text() == "other" and one.read_text() == "one"
    assert place.read_text() == "one" and [p.name for p in tmp_path.iterdir()] == ["kept"]
