"use strict";
/* The diagnostics of one run or of several, from the dict of trd_ray.diagnostics.whole.of_run: what is absent there is
   not drawn, and its sentence says how to get it. */
(() => {
  const KINDS = { trained: "trained", y_o_refine: "y_o, refine view", y_o_vanilla: "y_o, vanilla view",
    y_r_refine: "y_r, refine view", y_r_vanilla: "y_r, vanilla view" };
  const SIGNAL = [
    ["KL signal", "nats a token", "mean"], ["KL signal, a trajectory each", "nats a token", "row_mean"],
    ["KL, 95th percentile", "nats", "p95"], ["KL, largest", "nats", "max"],
    ["Perplexity gap", "student - teacher", "ppl_gap"], ["Doubt of the teacher", "probability, per mille", "onset"],
  ];
  const SUPPORT = [
    ["Likelihood under the student", "nats a token", [["y_o_nll", "y_o"], ["y_r_nll", "y_r"]], false],
    ["Kept and edited", "share of tokens", [["kept_share", "of y_o kept"], ["edited_share", "edited"]], true],
    ["Leaks", "share of refinements", [["leaks", "mention reference or attempt"]], true],
    ["Repetition", "share of tokens", [["y_o_repetition", "y_o"], ["y_r_repetition", "y_r"]], true],
    ["Unique answers", "share", [["unique_answers", "unique answers"]], true],
  ];
  const TITLES = { signal: "Signal", position: "Where it sits", classes: "In which tokens", departure: "Departure",
    support: "Support", lengths: "Lengths", buckets: "Difficulty", subsets: "Subsets" };
  const percent = (value) => (value === null || value === undefined ? "-" : `${(100 * value).toFixed(1)}%`);
  const some = (y) => Array.isArray(y) && y.some((value) => value !== null);

  const table = (label, head, rows) => trd.el("div", { class: "scrolls", tabindex: 0, role: "region", "aria-label": label },
    trd.el("table", {}, trd.el("caption", {}, label), trd.el("thead", {}, trd.el("tr", {}, head.map((one) => trd.el("th", { scope: "col" }, one)))),
      trd.el("tbody", {}, rows.map(([first, ...rest]) => trd.el("tr", {}, trd.el("th", { scope: "row" }, first),
        rest.map((one) => trd.el("td", {}, one)))))));

  const onAxis = (x, steps, y) => { const at = new Map(steps.map((step, i) => [step, y[i]])); return x.map((one) => at.get(one) ?? null); };

  /* Lines over the steps: `pick(run)` gives [label, steps, y] of each. */
  const overSteps = (grid, runs, title, unit, pick, share, explains) => {
    const found = runs.flatMap((run, r) => pick(run).map(([label, steps, y], i) => ({ r, i, label, steps, y, run: run.label })))
      .filter((one) => some(one.y));
    if (!found.length) return;
    const x = [...new Set(found.flatMap((one) => one.steps))].sort((a, b) => a - b);
    trd.chart(grid, { title, unit, explains, x, group: "steps", share, zero: true, lines: found.map((one) => ({
      label: runs.length > 1 ? `${one.run}: ${one.label}` : one.label, name: one.label, run: runs.length > 1 ? one.run : null,
      y: onAxis(x, one.steps, one.y),
      colour: runs.length > 1 ? one.r : one.i, dash: one.i })) });
  };

  const parts = {
    signal: (root, runs) => {
      const grid = trd.el("div", { class: "charts" });
      root.append(grid);
      for (const [title, unit, name] of SIGNAL) {
        overSteps(grid, runs, title, unit, (run) => Object.entries(run.signal?.kinds || {})
          .map(([kind, found]) => [KINDS[kind] || kind, run.signal.steps, found[name]]));
      }
      const names = ["mean", "row_mean", "p50", "p95", "p99", "max", "ppl_student", "ppl_teacher", "ppl_gap", "onset"];
      const rows = runs.flatMap((run) => [
        ...Object.entries(run.signal?.all || {}).map(([kind, found]) => [KINDS[kind] || kind, found]),
        ...Object.entries(run.signal?.paired || {}).flatMap(([view, found]) => ["y_o", "y_r"].filter((y) => found[y])
          .map((y) => [`${y} of the rows with both, ${view} view`, { rows: found.rows, ...found[y] }])),
      ].map(([label, found]) => [runs.length > 1 ? `${run.label}: ${label}` : label, trd.number(found.rows),
        ...names.map((name) => trd.number(found[name]))]));
      root.append(table("Signal over all steps", ["", "rows", ...names.map((name) => name.replace("_", " "))], rows));
    },
    position: (root, runs) => {
      const grid = trd.el("div", { class: "charts" });
      root.append(grid);
      const x = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10];
      for (const [title, unit, name] of [["KL by tenth of the trajectory", "nats a token", "kl"], ["Doubt by tenth", "per mille", "onset"]]) {
        const lines = runs.flatMap((run, r) => Object.entries(run.position || {}).map(([kind, found], i) => ({
          label: runs.length > 1 ? `${run.label}: ${KINDS[kind] || kind}` : KINDS[kind] || kind, y: found[name] || [],
          colour: runs.length > 1 ? r : i, dash: i }))).filter((line) => some(line.y));
        if (lines.length) trd.chart(grid, { title, unit, x, xName: "tenth", zero: true, lines, group: "tenths" });
      }
      root.append(table("First third", ["", "share of all KL", "share of all tokens"], runs.flatMap((run) =>
        Object.entries(run.position || {}).map(([kind, found]) => [runs.length > 1 ? `${run.label}: ${KINDS[kind] || kind}` : KINDS[kind] || kind,
          percent(found.first_third), percent(found.first_third_tokens)]))));
    },
    classes: (root, runs) => {
      for (const run of runs) for (const [kind, found] of Object.entries(run.classes || {})) {
        const at = kind === "trained" ? root : folded(root, `${KINDS[kind] || kind}${runs.length > 1 ? `, ${run.label}` : ""}`);
        const label = `Token classes, ${KINDS[kind] || kind}${runs.length > 1 ? `, ${run.label}` : ""}`;
        const sorted = Object.entries(found).sort((a, b) => b[1].kl - a[1].kl);
        at.append(bars(sorted.map(([name, one]) => [name, [one.kl, one.tokens]]), ["share of all KL", "share of all tokens"]),
          table(label, ["class", "share of KL", "share of tokens", "mean KL", "tokens"], sorted.map(([name, one]) =>
            [name, percent(one.kl), percent(one.tokens), trd.number(one.mean), trd.number(one.count)])));
      }
    },
    departure: (root, runs) => {
      const quantiles = ["p10", "p25", "p50", "p75", "p90"];
      const rows = runs.flatMap((run) => Object.entries(run.departure || {}).flatMap(([kind, groups]) =>
        Object.entries(groups).filter(([, one]) => one.rows).map(([group, one]) => [
          `${runs.length > 1 ? `${run.label}: ` : ""}${KINDS[kind] || kind}, ${group}`, trd.number(one.rows), percent(one.departed),
          ...quantiles.map((q) => percent(one.relative?.[q])), trd.number(one.kl_before), trd.number(one.kl_after)])));
      root.append(table("Where the teacher would have left y_o", ["attempts", "rows", "left", ...quantiles.map((q) => `at, ${q}`),
        "KL before", "KL after"], rows),
      trd.el("p", { class: "about" }, "Places are shares of the attempt's length, over the attempts that the teacher would have left."));
    },
    support: (root, runs) => {
      const grid = trd.el("div", { class: "charts" });
      root.append(grid);
      for (const [title, unit, names, share] of SUPPORT) {
        overSteps(grid, runs, title, unit, (run) => names.filter(([name]) => run.support?.per_step?.[name])
          .map(([name, label]) => [label, run.support.steps, run.support.per_step[name]]), share);
      }
      for (const run of runs) {
        const found = run.support?.leaked || [];
        if (found.length) root.append(table(`Leaks${runs.length > 1 ? ` of ${run.label}` : ""}`, ["pattern", "rows", "such as", "in row"],
          found.map((one) => [one.pattern, trd.number(one.rows), one.text, trd.number(one.row)])));
      }
    },
    lengths: (root, runs) => {
      const groups = { all: "all", already_correct: "already correct", failed: "failed" };
      const names = ["mean", "p5", "p25", "p50", "p75", "p95", "max"];
      const rows = runs.flatMap((run) => Object.entries(groups).flatMap(([group, said]) =>
        ["raw", "refined", "reference"].filter((what) => run.lengths?.[group]?.[what]?.rows).map((what) => {
          const one = run.lengths[group][what];
          return [`${runs.length > 1 ? `${run.label}: ` : ""}${what}, ${said}`, trd.number(one.rows), ...names.map((name) => trd.number(one[name]))];
        })));
      root.append(table("Tokens", ["", "rows", ...names], rows));
    },
    buckets: (root, runs) => {
      for (const run of runs) {
        const found = run.buckets?.rows || [];
        if (found.length) root.append(table(`Training problems by how often they are solved${runs.length > 1 ? `, ${run.label}` : ""}`,
          ["solved", "problems", "rows", "raw pass", "refined pass", "raw tokens", "refined tokens", "KL"], found.map((one) =>
            [one.label, trd.number(one.problems), trd.number(one.rows), percent(one.y_o_passed), percent(one.y_r_passed),
              trd.number(one.raw), trd.number(one.refined), trd.number(one.kl)])));
      }
    },
    subsets: (root, runs) => {
      for (const run of runs) if (run.subsets?.length) {
        root.append(table(`What train.subset would keep${runs.length > 1 ? `, ${run.label}` : ""}`,
          ["subset", "rows", "share", "raw pass", "refined pass", "tokens", "raw", "refined", "KL", "edited"], run.subsets.map((one) =>
            [one.subset, trd.number(one.rows), percent(one.share), percent(one.y_o_passed), percent(one.y_r_passed), trd.number(one.tokens),
              trd.number(one.raw), trd.number(one.refined), trd.number(one.kl), percent(one.edited_share)])));
      }
    },
  };

  /* Two bars a line: full and hatched, so that they differ without colour. */
  const bars = (lines, names) => {
    const most = Math.max(...lines.flatMap(([, values]) => values), 1e-9);
    return trd.el("div", { class: "shares", "aria-hidden": "true" },
      trd.el("p", { class: "about" }, `Full: ${names[0]}. Outlined: ${names[1]}.`),
      lines.map(([name, values]) => trd.el("div", { class: "share" }, trd.el("span", {}, name),
        trd.svg("svg", { width: "100%", height: 22 }, values.map((value, i) => trd.svg("rect", {
          class: i ? "outlined" : "full", x: 0, y: 1 + i * 11, height: 8, width: `${(100 * value) / most}%` }))))));
  };

  const folded = (root, title) => {
    const made = trd.el("details", {}, trd.el("summary", {}, title));
    root.append(made);
    return made;
  };

  /* The run without the kinds whose numbers are all those of what trained, and which kinds these are. */
  const distinct = (run) => {
    const trees = { kinds: run.signal?.kinds, all: run.signal?.all, position: run.position, classes: run.classes };
    const same = (tree, kind) => !tree?.[kind] || JSON.stringify(tree[kind]) === JSON.stringify(tree.trained);
    const repeated = Object.keys(trees.kinds || {}).filter((kind) => kind !== "trained" &&
      Object.values(trees).every((tree) => same(tree, kind)));
    const without = (tree) => tree && Object.fromEntries(Object.entries(tree).filter(([kind]) => !repeated.includes(kind)));
    return { repeated, run: { ...run, position: without(run.position), classes: without(run.classes),
      signal: run.signal && { ...run.signal, kinds: without(trees.kinds), all: without(trees.all) } } };
  };

  trd.panels.diagnostics = (root, given) => {
    const each = given.map(distinct);
    const runs = each.map((one) => one.run);
    const repeated = [...new Set(each.flatMap((one) => one.repeated))].map((kind) => KINDS[kind] || kind);
    if (repeated.length) root.append(trd.el("p", { class: "about" }, `What trained is ${repeated.join(" and ")}, which is not repeated.`));
    for (const [name, draw] of Object.entries(parts)) {
      const has = name === "buckets" ? runs.some((run) => run.buckets?.rows?.length) : runs.some((run) => run[name]);
      const missing = runs.map((run) => run.missing?.[name]).find(Boolean);
      if (!has && !missing) continue;
      const part = trd.el("div", { class: "block", "data-part": name }, trd.el("h3", {}, TITLES[name]));
      root.append(part);
      if (has) draw(part, runs);
      if (missing) part.append(trd.el("p", { class: "note" }, missing[0].toUpperCase() + missing.slice(1) + "."));
    }
    if (!root.children.length) root.append(trd.el("p", { class: "note" },
      "Nothing was scored: set diagnostics.tokens=true in the recipe of the next run."));
  };
})();
