"""The keys of trackers: what they refuse, that no resume minds them, and that what is not installed is refused."""

import pytest

from trd_ray.config import from_tree, stored
from trd_ray.errors import UserError
from trd_ray.record.directory import MAY_CHANGE
from trd_ray.trackers import installed
from trd_ray.trackers.installed import require_trackers


def test_tensorboard_is_the_default_and_a_tracker_counts_once(tmp_path):
    assert from_tree({"name": "mine"}).trackers == ["tensorboard"]
    assert from_tree({"trackers": ["wandb", "mlflow", "wandb"]}).trackers == ["wandb", "mlflow"]
    (tmp_path / "recipe.yaml").write_text("name: older\n")
    assert stored(tmp_path / "recipe.yaml").trackers == ["tensorboard"], "a run of an older version goes on"


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"trackers": ["wandb", "comet"]}, "comet"),
        ({"tracking": {"projekt": "x"}}, "did you mean project"),
        ({"tracking": {"project": "a\nb"}}, "printable"),
        ({"tracking": {"name": " "}}, "1 to 128 printable characters"),
        ({"tracking": {"tags": ["x" * 65]}}, "W&B takes 64"),
        ({"tracking": {"deadline_s": 0}}, "deadline_s"),
        ({"tracking": {"sample_rows": 65}}, "sample_rows"),
    ],
)
def test_what_cannot_work_is_refused_by_the_key_s_name(tree, said):
    with pytest.raises(UserError, match=said):
        from_tree(tree)


def test_a_resume_may_change_every_key_of_trackers():
    keys = {key for key in MAY_CHANGE if key.startswith("track")}
    assert keys == {"trackers", *(f"tracking.{name}" for name in type(from_tree({}).tracking).model_fields)}


def test_a_tracker_that_is_not_installed_is_refused_with_the_command_that_installs_it(monkeypatch, tmp_path):
    require_trackers(["tensorboard", "wandb", "mlflow"], {})
    monkeypatch.setattr(installed, "find_spec", lambda name: None)
    require_trackers(["tensorboard"], {})
    with pytest.raises(
        UserError, match=r"^trackers names wandb, which is not installed: pip install 'trd-ray\[wandb\]'"
    ):
        require_trackers(["wandb"], {})


def test_a_folder_of_wandb_s_own_files_is_no_package(monkeypatch, tmp_path):
    (tmp_path / "a_tracker" / "offline-run-1").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    assert not installed.is_installed("a_tracker") and installed.is_installed("wandb")


def test_a_database_that_the_small_form_of_mlflow_cannot_open_is_refused_before_anything_starts():
    with pytest.raises(UserError, match=r"MLFLOW_TRACKING_URI is a database \(sqlite\).*pip install mlflow"):
        require_trackers(["mlflow"], {"MLFLOW_TRACKING_URI": "sqlite:////shared/mlflow.db"})
    require_trackers(["wandb"], {"MLFLOW_TRACKING_URI": "sqlite:////shared/mlflow.db"})
    for uri in ("http://mlflow:5000", "file:/shared/mlruns", "databricks"):
        require_trackers(["mlflow"], {"MLFLOW_TRACKING_URI": uri})
