"use strict";
/* The sample browser: a filter, the list of what it leaves, and one sample whole. All state is in the address:

   #samples?row=17&cell=fail_pass&colour=student     see samples_filter.js and samples_detail.js for the keys

   j and k go to the next and the previous sample, / to the search. */
(() => {
  const { el } = trd;
  const HIT = "sample-hit";

  /* Marks where the search is found, where the browser can without changing the document. */
  trd.sampleHits = (root, q) => {
    if (!globalThis.Highlight || !CSS.highlights) return;
    CSS.highlights.delete(HIT);
    if (!q) return;
    const pattern = new RegExp(q.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"), "giu");
    const ranges = [];
    for (const block of root.querySelectorAll(".text, dd")) {
      const nodes = [];
      const walk = document.createTreeWalker(block, NodeFilter.SHOW_TEXT);
      let text = "";
      while (walk.nextNode()) {
        nodes.push([text.length, walk.currentNode]);
        text += walk.currentNode.data;
      }
      const place = (at, end) => {
        let n = nodes.length - 1;
        while (n > 0 && nodes[n][0] + (end ? 1 : 0) > at) n--;
        return [nodes[n][1], at - nodes[n][0]];
      };
      for (const { index, 0: found } of text.matchAll(pattern)) {
        if (ranges.length >= 500) break;
        const range = new Range();
        range.setStart(...place(index, false));
        range.setEnd(...place(index + found.length, true));
        ranges.push(range);
      }
    }
    if (ranges.length) CSS.highlights.set(HIT, new Highlight(...ranges));
  };

  const itemsOf = (data) => {
    const made = (row, problems, evaluated) => {
      const problem = problems[row.problem];
      const scored = (row.scored || []).find((one) => one.trained) ?? row.scored?.[0];
      const passed = row.y_o?.passed;
      return {
        data: row, problem, evaluated, set: row.evaluation ?? "", row: row.row, step: row.step ?? null,
        cell: evaluated ? (passed === undefined ? "open" : passed ? "pass" : "fail") : row.cell,
        source: row.source ?? "", tokens: row.y_o?.tokens ?? null, refined: row.y_r?.tokens ?? null,
        kl: scored?.means.kl ?? null, peak: scored?.highest ?? null,
        title: evaluated ? `Sample ${row.row} of ${row.evaluation}` : `Row ${row.row} of step ${row.step}`,
        texts: () => [problem.id, problem.problem, problem.answer, ...["y_o", "y_r"].flatMap((y) =>
          row[y] ? [row[y].text, row[y].detail, row[y].feedback] : [])].filter(Boolean),
      };
    };
    return [
      ...data.rows.all.map((row) => made(row, data.rows.problems, false)),
      ...data.samples.all.map((row) => made(row, data.samples.problems, true)),
    ];
  };

  const columns = (several, scored) => [
    { name: "row", head: "Row", cell: (one) => String(one.row) },
    { name: "step", head: "Step", cell: (one) => (one.step === null ? "" : String(one.step)) },
    { name: "cell", head: "Verdicts", cell: (one) => el("span", { class: `cell cell-${one.cell}` }, trd.sampleCells[one.cell]) },
    { name: "tokens", head: "Tokens", cell: (one) =>
      [one.tokens, one.evaluated ? null : one.refined].filter((n) => n !== null).map((n) => trd.number(n)).join(" > ") },
    ...(scored ? [{ name: "kl", head: "Mean KL", cell: (one) => trd.number(one.kl, 3) }] : []),
    ...(several ? [{ name: "source", head: "Source", cell: (one) => one.source }] : []),
    { name: "problem", head: "Problem", cell: (one) =>
      trd.texts.shown(el("span"), (one.problem.problem ?? one.problem.id).slice(0, 200).replace(/\s+/g, " ")) },
  ];

  trd.panels.samples = (root, data) => {
    const items = itemsOf(data);
    const count = (n, of) => (n === of ? trd.number(n) : `${trd.number(n)} of ${trd.number(of)}`);
    const sets = {};
    if (data.rows.all.length) sets[""] = `training (${count(data.rows.all.length, data.of)})`;
    for (const [name, of] of Object.entries(data.evaluations)) {
      const n = items.filter((one) => one.set === name).length;
      if (n) sets[name] = `evaluation ${name} (${count(n, of)})`;
    }
    const sources = [...new Set(data.rows.all.map((row) => row.source).filter(Boolean))].sort();
    let current = null;
    let listed = [];

    const write = () => trd.go("samples", {
      ...(current && { row: current.row }), ...filter.address(), ...detail.address(),
    });
    const choose = (item) => {
      current = item;
      detail.show(item, filter.state.q);
      write();
    };
    const list = trd.rowList({ label: "Samples", columns: columns(sources.length > 1, items.some((one) => one.kl !== null)),
      chosen: choose });
    const near = (item) => items
      .filter((one) => one !== item && one.evaluated === item.evaluated && one.problem === item.problem)
      .slice(0, 12)
      .map((one) => ({
        title: `${one.title}, ${trd.sampleCells[one.cell]}`,
        go: () => {
          filter.read(new URLSearchParams({ set: one.set }));
          relist();
          list.select(one);
          choose(one);
        },
      }));
    const detail = trd.sampleDetail({ scale: data.scale, changed: () => write(), near, move: (by) => list.move(by) });
    const relist = () => {
      listed = filter.matching();
      if (current && !listed.includes(current)) current = null;
      list.fill(listed, current);
      filter.said(listed.length);
    };
    const filter = trd.sampleFilter({ items, sets, sources, changed: () => {
      filter.cells();
      relist();
      current ??= listed[0] ?? null;
      if (current) {
        list.select(current);
        detail.show(current, filter.state.q);
      } else detail.missing("No sample that this page holds is like that.");
      write();
    } });

    /* What an address asks for; without a row, the first of the list. */
    const arrive = (asked) => {
      filter.read(asked);
      detail.read(asked);
      const row = asked.get("row");
      relist();
      current = row === null ? listed[0] ?? null : null;
      if (row !== null) {
        current = items.find((one) => one.set === filter.state.set && String(one.row) === row) ?? null;
        if (current && !listed.includes(current)) {
          filter.read(new URLSearchParams({ set: filter.state.set }));
          relist();
        }
      }
      list.select(current);
      if (current) detail.show(current, filter.state.q);
      else if (row === null) detail.missing("No sample that this page holds is like that.");
      else detail.missing(`Row ${row} is not in this page: `, filter.state.set ? data.rule_of_samples : data.rule);
    };

    const rules = el("p", { class: "rule" });
    const rule = () => { rules.textContent = filter.state.set ? data.rule_of_samples : data.rule; };
    root.append(el("div", { class: "samples-panel" },
      data.notes.map((note) => trd.texts.shown(el("p", { class: "note" }), note)),
      filter.element, el("div", { class: "above-list" }, filter.count, rules), list.element, detail.element));
    filter.element.addEventListener("change", rule);
    root.addEventListener("keydown", (event) => {
      if (event.altKey || event.ctrlKey || event.metaKey || event.target.closest("input, select, textarea")) return;
      if (event.key === "j" || event.key === "k") list.move(event.key === "j" ? 1 : -1);
      else if (event.key === "/") root.querySelector("[name=q]").focus();
      else return;
      event.preventDefault();
    });
    trd.arrivals.samples = (asked) => { arrive(asked); rule(); };
    const { panel, asked } = trd.place();
    trd.arrivals.samples(panel === "samples" ? asked : new URLSearchParams());
  };
})();
