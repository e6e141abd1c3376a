"use strict";
/* The curves of a comparison against what was spent: a chart for each mode, score and axis, a line for each method. */
(() => {
  const lines = (x, drawn) => drawn.map((one, i) => {
    const at = new Map(one.points.map(([spent, value, error]) => [spent, { value, error }]));
    const each = (of) => x.map((spent) => (at.has(spent) ? of(at.get(spent)) : null));
    return {
      label: one.method, y: each((p) => p.value), colour: i, dash: Math.floor(i / trd.colours), points: true,
      low: each((p) => (p.error === null ? null : p.value - p.error)),
      high: each((p) => (p.error === null ? null : p.value + p.error)),
    };
  });

  trd.panels.spending = (root, data) => {
    const grid = trd.el("div", { class: "charts" });
    root.append(grid);
    for (const chart of data.charts) {
      const x = [...new Set(chart.lines.flatMap((line) => line.points.map(([spent]) => spent)))].sort((a, b) => a - b);
      trd.chart(grid, { title: chart.title, unit: "percent", explains: "", x, xName: chart.axis,
        lines: lines(x, chart.lines), group: chart.axis, share: true });
    }
  };
})();
