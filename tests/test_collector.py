"""The garbage collector is off while packages are imported, and afterwards as it was."""

import gc

import pytest

from trd_ray import collector


def test_the_collector_is_off_within_and_on_again_also_after_a_failed_import():
    with collector.off():
        assert not gc.isenabled()
        with collector.off():
            pass
        assert not gc.isenabled(), "the inner one has turned on what the outer one had turned off"
    assert gc.isenabled()
    with pytest.raises(ImportError), collector.off():
        import a_package_that_is_missing  # noqa: F401  # pyright: ignore[reportMissingImports]
    assert gc.isenabled()
