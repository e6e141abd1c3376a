"""What nobody owns any more is removed, and nothing else."""

import fcntl
import multiprocessing
import os
from pathlib import Path

import pytest

from trd_ray import litter
from trd_ray.litter import owned_folder, remove_semaphores, semaphores, sweep


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(litter.tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_folder_is_swept_once_its_owner_is_gone_and_no_other_ever(place):
    kept, lock = owned_folder()
    abandoned, gone = owned_folder()
    (abandoned / "sockets").mkdir()
    handed_on, ours = owned_folder()
    theirs = os.dup(ours)  # as a child has it
    os.close(ours)
    os.close(gone)
    (place / "trd-other").mkdir()  # without a lock: another program's
    (place / "trd-file").touch()
    (place / "trd-link").symlink_to(kept)
    (place / "others-1").mkdir()
    assert sweep() == [abandoned]
    assert {one.name for one in place.iterdir()} == {
        kept.name, handed_on.name, "trd-other", "trd-file", "trd-link", "others-1",
    }  # fmt: skip
    os.close(theirs)
    os.close(lock)
    assert set(sweep(place)) == {handed_on, kept}


def test_a_folder_of_another_machine_on_shared_storage_is_left_alone(place):
    folder, lock = owned_folder()
    os.close(lock)
    (folder / litter.OWNER).write_text("another-machine")
    assert sweep() == [] and folder.is_dir()


def test_a_folder_of_which_the_lock_is_not_held_yet_is_left_alone(place, monkeypatch):
    def sweeps_meanwhile(fd: int, operation: int) -> None:
        assert sweep() == []
        flock(fd, operation)

    flock = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", sweeps_meanwhile)
    folder, lock = owned_folder()
    monkeypatch.undo()
    assert folder.is_dir() and sweep(place) == []
    os.close(lock)


def test_the_semaphores_of_a_process_are_found_and_removed():
    lock = multiprocessing.get_context("spawn").Lock()
    name = f"sem.{lock._semlock.name.removeprefix('/')}"
    assert name in semaphores([os.getpid(), 2**22 + 1]) and (litter.SHARED / name).exists()
    remove_semaphores([name, "sem.mp-that-is-gone"])
    assert not (litter.SHARED / name).exists() and semaphores([]) == set()
    (litter.SHARED / name).touch()  # Python itself removes it in the end
