"use strict";
/* The ledger over the steps: the shares of its four cells, standing on each other. */
(() => {
  const CELLS = [["pass_pass", "passed before and after"], ["fail_pass", "repaired"], ["fail_fail", "failed before and after"],
    ["pass_fail", "broken"]];

  trd.panels.ledger = (root, runs) => {
    const grid = trd.el("div", { class: "charts wide" });
    root.append(grid);
    for (const run of runs) {
      const totals = run.steps.map((_, i) => CELLS.reduce((sum, [name]) => sum + (run[name][i] ?? 0), 0));
      if (!totals.some(Boolean)) continue;
      trd.chart(grid, {
        title: runs.length > 1 ? `Over the steps: ${run.label}` : "Over the steps", unit: "share of the judged rollouts",
        x: run.steps, share: true, stacked: true, group: "steps",
        lines: CELLS.map(([name, label], i) => ({
          label, colour: [2, 0, 4, 6][i], dash: [0, 1, 2, 3][i],
          y: run.steps.map((_, k) => (totals[k] ? (run[name][k] ?? 0) / totals[k] : null)),
        })),
      });
    }
  };
})();
