"""A page of ours in a browser, read as a person reads it, and numbers to compare it with."""

import json
import re

import pandas as pd
import pyarrow.parquet as pq


class Page:
    """A page that is opened from its file, with what it said and asked for."""

    def __init__(self, browser, place, **options):
        self.context = browser.new_context(viewport={"width": 1280, "height": 900}, **options)
        self.page = self.context.new_page()
        self.said, self.asked = [], []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(place.as_uri())

    def draw(self, *panels: str) -> None:
        """Scroll to each panel, and wait until what its script draws is there; some have nothing to draw."""
        for panel in panels:
            if not self.page.locator(f"#{panel} [data-panel]").count():
                continue
            self.page.locator(f"#{panel}").scroll_into_view_if_needed()
            self.page.wait_for_selector(f"#{panel} [data-panel][data-done]", state="attached")

    def cells(self, selector: str) -> list[list[str]]:
        """The texts of a table's cells, line by line."""
        read = "table => [...table.rows].map(row => [...row.cells].map(cell => cell.textContent.trim()))"
        return self.page.locator(selector).first.evaluate(read)

    def titled(self, panel: str, title: str) -> list[list[str]]:
        return self.cells(f"#{panel} .scrolls[aria-label={json.dumps(title)}] table")

    def chart(self, title: str, panel: str = "curves") -> list[list[str]]:
        figure = f"#{panel} figure[data-chart={json.dumps(title)}]"
        self.page.locator(f"{figure} > details > summary").click()
        return self.cells(f"{figure} details table")


def per_problem(run, name: str) -> pd.Series:
    """Problem -> the list of its samples' verdicts."""
    table = pq.read_table(run / "evaluation" / f"{name}.parquet").to_pandas()
    return table.assign(passed=[y["passed"] for y in table["y_o"]]).groupby("problem_id")["passed"].apply(list)


def number(text: str) -> float:
    return float(re.match(r"[-+]?[\d.,]+(e[-+]?\d+)?", text)[0].replace(",", ""))
