"""A tracker that cannot work here is refused before anything starts, in one sentence.

`trackers` of a recipe, what Python finds, MLFLOW_TRACKING_URI  ->  require_trackers()  ->  nothing, or a UserError
"""

import os
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from urllib.parse import urlsplit

from trd_ray.errors import UserError

EXTRAS = {"wandb": "trd-ray[wandb]", "mlflow": "trd-ray[mlflow]"}
DATABASES = {"sqlite", "mysql", "postgresql", "mssql"}  # which MLflow opens itself, with SQLAlchemy


def require_trackers(trackers: Iterable[str], environment: Mapping[str, str] = os.environ) -> None:
    """Raise UserError for a tracker that is not installed, or whose store needs what is not."""
    for name in trackers:
        if name in EXTRAS and not is_installed(name):
            raise UserError(
                f"trackers names {name}, which is not installed: pip install '{EXTRAS[name]}', or leave it out"
            )
    uri = environment.get("MLFLOW_TRACKING_URI", "")
    kind = urlsplit(uri).scheme.partition("+")[0]
    if "mlflow" in trackers and kind in DATABASES and not is_installed("sqlalchemy"):
        raise UserError(
            f"MLFLOW_TRACKING_URI is a database ({kind}), which the small form of MLflow cannot open by itself: pip "
            "install mlflow, or set MLFLOW_TRACKING_URI to a server or to a folder (file:/shared/mlruns)"
        )


def is_installed(package: str) -> bool:
    """Whether there is such a package; a folder `wandb/` of W&B's own files, where the run starts, is none."""
    found = find_spec(package)
    return found is not None and found.origin is not None
