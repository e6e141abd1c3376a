"""How the page looks at three widths, light and dark, with everything opened; how soon it is there, how large it is.

The pictures are left in pytest's temporary folder, to be looked at.
"""

import pytest

from opened_pages import Page
from recorded_runs import recorded
from trd_ray.report.written import write_report

pytestmark = pytest.mark.long

# Elements of which something is seen beyond the width: what an ancestor clips, as a cell of one line does, is not seen.
OUTSIDE = """() => {
    const seen = one => {
        let right = one.getBoundingClientRect().right
        for (let up = one.parentElement; up; up = up.parentElement)
            if (["hidden", "clip"].includes(getComputedStyle(up).overflowX))
                right = Math.min(right, up.getBoundingClientRect().right)
        return right
    }
    return [...document.querySelectorAll("main *")]
        .filter(one => !one.closest(".scrolls, .plot, nav") && seen(one) > innerWidth + 1)
        .map(one => one.outerHTML.slice(0, 200))
}"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    run = recorded(tmp_path_factory.mktemp("runs") / "long", steps=300, rollouts=16, hostile=True)
    return write_report([run])


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 820, 1280])
def test_everything_keeps_inside_its_width(browser, place, tmp_path, width, scheme):
    page = Page(browser, place, color_scheme=scheme)
    page.page.set_viewport_size({"width": width, "height": 900})
    page.draw("curves", "ledger", "samples", "timeline", "diagnostics")
    page.page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    page.page.wait_for_timeout(300)
    assert page.page.evaluate(OUTSIDE) == []
    assert page.page.evaluate("document.documentElement.scrollWidth") == width
    assert page.page.evaluate("document.documentElement.dataset.theme") == scheme
    assert page.said == []
    page.page.screenshot(path=tmp_path / f"report-{width}-{scheme}.png", full_page=True)
    page.context.close()


def test_the_first_view_is_there_within_a_second_and_the_page_is_small(browser, place):
    assert place.stat().st_size < 10_000_000
    page = Page(browser, place)
    page.page.wait_for_timeout(1_000)
    assert page.page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime") < 1_000
    page.context.close()


def test_a_page_of_the_quickstart_s_size_is_below_2_mb(tmp_path):
    run = recorded(tmp_path / "r", steps=25, rollouts=64)
    assert write_report([run]).stat().st_size < 2_000_000
