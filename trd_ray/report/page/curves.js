"use strict";
/* The curves: a chart for each group of metrics over the steps, of one run or of several over each other. */
(() => {
  const KINDS = { evaluation: ["◆", "evaluation"], checkpoint: ["|", "checkpoint"], restart: ["┆", "restart"] };

  /* The steps of all runs in one list, and a run's values on it. */
  const axis = (runs) => [...new Set(runs.flatMap((run) => run.steps))].sort((a, b) => a - b);
  const onAxis = (x, run, values) => {
    if (!values) return x.map(() => null);
    const at = new Map(run.steps.map((step, i) => [step, values[i]]));
    return x.map((step) => at.get(step) ?? null);
  };

  /* With one run colours tell metrics apart, with several they tell runs apart; dashes always tell metrics apart. */
  const lines = (x, runs, series) => runs.flatMap((run, r) => series.map((one, s) => {
    const ends = run.intervals[one.name];
    return {
      label: runs.length > 1 ? `${run.label}: ${one.label}` : one.label, name: one.label,
      run: runs.length > 1 ? run.label : null, y: onAxis(x, run, run.metrics[one.name]), colour: runs.length > 1 ? r : s, dash: s,
      low: ends && onAxis(x, run, ends[0]), high: ends && onAxis(x, run, ends[1]), points: Boolean(ends),
    };
  })).filter((line) => line.y.some((value) => value !== null));

  const marksOf = (runs) => {
    const all = runs.flatMap((run) => run.marks.map((mark) => ({ ...mark, run: run.label })));
    if (!all.length) return null;
    const kinds = Object.keys(KINDS).filter((kind) => all.some((mark) => mark.kind === kind));
    return trd.el("div", { class: "marks" },
      runs.length > 1 ? null : trd.el("p", {}, kinds.map((kind) => trd.el("span", { class: `mark ${kind}` },
        trd.el("span", { "aria-hidden": "true" }, KINDS[kind][0]), ` ${KINDS[kind][1]}`))),
      trd.el("details", {}, trd.el("summary", {}, `${all.length} marks`),
        trd.el("ul", {}, all.map((mark) => trd.el("li", {},
          `Step ${trd.number(mark.at)}${runs.length > 1 ? `, ${mark.run}` : ""}: ${mark.said}`)))));
  };

  trd.panels.curves = (root, data) => {
    const x = axis(data.runs);
    const marks = data.runs.length > 1 ? [] : data.runs[0].marks; // those of several runs hide each other
    const grid = trd.el("div", { class: "charts" });
    root.append(...[marksOf(data.runs), grid].filter(Boolean));
    for (const chart of data.charts) {
      trd.chart(grid, { ...chart, x, lines: lines(x, data.runs, chart.series), marks, group: "steps",
        share: chart.unit === "share" });
    }
    const place = trd.el("div", { class: "charts other" });
    const names = trd.el("select", { id: "other-metric" },
      data.names.map((name) => trd.el("option", { value: name }, name)));
    const draw = () => {
      place.replaceChildren();
      const series = [{ name: names.value, label: names.value }];
      trd.chart(place, { title: names.value, unit: "", explains: "", x, lines: lines(x, data.runs, series), marks,
        group: "steps" });
    };
    names.addEventListener("change", draw);
    root.append(trd.el("p", { class: "choose" },
      trd.el("label", { for: "other-metric" }, "Any other metric "), names), place);
    names.value = data.names.includes("loss") ? "loss" : data.names[0];
    draw();
  };
})();
