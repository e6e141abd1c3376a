"""Every condition, in the order of the names that a recipe may hold."""

from trd_ray.alarms import of_learning, of_pace, of_rows
from trd_ray.config import ALARMS

_ALL = {one.name: one for one in (*of_rows.CONDITIONS, *of_learning.CONDITIONS, *of_pace.CONDITIONS)}
CONDITIONS = [_ALL[name] for name in ALARMS]
TOLD_ELSEWHERE = {one.name for one in CONDITIONS if one.told_elsewhere}
