"use strict";
/* Which samples the list shows: what the reader asks for, in the controls and in the address.

   trd.sampleFilter({sets, sources, changed})   {element, state, read(asked), matching(items), address()}

   The state is text by key; what is "" or a default stays out of the address:
     set     "" for rows of training, or the name of an evaluation
     cell    a cell of the ledger; pass or fail in an evaluation
     step, tokens, kl    ranges "3-7", "-7" or "3-", inclusive
     source, q, sort */
(() => {
  const { el } = trd;
  const CELLS = {
    fail_pass: "repaired", pass_fail: "broken", pass_pass: "passed twice", fail_fail: "failed twice",
    pass: "passed", fail: "failed", open: "no verdict yet", fault: "bad row",
  };
  const SORTS = {
    "": "as they came", kl: "highest KL", peak: "highest KL of a token", "kl-low": "lowest KL", long: "longest y_o",
    short: "shortest y_o", "long-r": "longest y_r", late: "last step first",
  };
  const KEYS = ["set", "cell", "step", "source", "tokens", "kl", "q", "sort"];
  const RANGES = ["step", "tokens", "kl"];

  const numberOr = (text, other) => (text === "" || !Number.isFinite(Number(text)) ? other : Number(text));
  const within = (range) => {
    if (!range) return () => true;
    const [low, high] = bounds(range);
    return (value) => value !== null && value >= numberOr(low, -Infinity) && value <= numberOr(high, Infinity);
  };
  /* "3-7", "3-", "-7", and 1e-3-0.5: a dash after an e belongs to the number. */
  const bounds = (range) => {
    const found = /^\s*([\d.]*(?:e-?\d+)?)\s*-\s*([\d.]*(?:e-?\d+)?)\s*$/i.exec(range);
    return found ? [found[1], found[2]] : [range.trim(), range.trim()];
  };
  const last = (a, b) => (a === null) - (b === null); // what has no number comes last
  const by = (key, sign) => (a, b) => last(key(a), key(b)) || sign * ((key(a) ?? 0) - (key(b) ?? 0));
  const ORDERS = {
    kl: by((one) => one.kl, -1), "kl-low": by((one) => one.kl, 1), peak: by((one) => one.peak, -1),
    long: by((one) => one.tokens, -1), short: by((one) => one.tokens, 1), "long-r": by((one) => one.refined, -1),
    late: by((one) => one.step, -1),
  };

  const matching = (state, items) => {
    const [step, tokens, kl] = RANGES.map((key) => within(state[key]));
    const q = state.q && new RegExp(state.q.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"), "iu");
    const found = items.filter((one) =>
      one.set === state.set
      && (!state.cell || one.cell === state.cell)
      && (!state.source || one.source === state.source)
      && step(one.step) && tokens(one.tokens) && kl(one.kl)
      && (!q || one.texts().some((text) => q.test(text))));
    const order = ORDERS[state.sort];
    return order ? found.map((one, n) => [one, n]).sort((a, b) => order(a[0], b[0]) || a[1] - b[1]).map(([one]) => one)
      : found;
  };

  trd.sampleCells = CELLS;
  trd.sampleFilter = ({ items, sets, sources, changed }) => {
    const state = Object.fromEntries(KEYS.map((key) => [key, ""]));
    const count = el("p", { class: "count", role: "status" });
    const set = (key, value) => { state[key] = value; changed(); };

    const options = (key, label, texts, hidden) => {
      const select = el("select", { name: key, onchange: () => set(key, select.value) });
      for (const [value, text] of Object.entries(texts)) select.append(el("option", { value }, text));
      return el("label", { class: `filter-${key}`, hidden }, el("span", {}, label), select);
    };
    const range = (key, label, unit) => {
      const ends = ["from", "to"].map((end) => el("input", {
        type: "text", inputmode: "decimal", name: `${key}-${end}`, placeholder: end, size: 5, autocomplete: "off",
        "aria-label": `${label}, ${end}${unit ? `, ${unit}` : ""}`,
        oninput: () => {
          const [low, high] = ends.map((one) => one.value.trim());
          set(key, low || high ? `${low}-${high}` : "");
        },
      }));
      return el("div", { class: `filter-${key} range`, role: "group", "aria-label": label }, el("span", {}, label), ...ends);
    };
    let waiting = 0;
    const search = el("input", {
      type: "search", name: "q", placeholder: "in problem, texts and verdicts", autocomplete: "off",
      oninput: () => { clearTimeout(waiting); waiting = setTimeout(() => set("q", search.value), 150); },
    });
    const clear = el("button", {
      type: "button", class: "clear", onclick: () => { read(new URLSearchParams({ set: state.set })); changed(); },
    }, "Clear");
    const element = el("form", { class: "filters", role: "search", "aria-label": "Which samples are listed",
      onsubmit: (event) => event.preventDefault() },
      options("set", "Samples of", sets, Object.keys(sets).length < 2),
      options("cell", "Verdicts", {}),
      options("source", "Source", { "": "all", ...Object.fromEntries(sources.map((one) => [one, one])) }, sources.length < 2),
      range("step", "Step"), range("tokens", "Tokens of y_o"), range("kl", "Mean KL", "in nats"),
      options("sort", "Sort", SORTS),
      el("label", { class: "filter-q" }, el("span", {}, "Search"), search), clear);

    /* The cells that there are, each with how many of the set's samples are in it. */
    const cells = () => {
      const select = element.querySelector("[name=cell]");
      const counts = new Map();
      const of = items.filter((one) => one.set === state.set);
      of.forEach((one) => counts.set(one.cell, (counts.get(one.cell) || 0) + 1));
      select.replaceChildren(el("option", { value: "" }, `all (${trd.number(of.length)})`));
      for (const [cell, name] of Object.entries(CELLS)) {
        if (counts.has(cell)) select.append(el("option", { value: cell }, `${name} (${trd.number(counts.get(cell))})`));
      }
      if (!counts.has(state.cell)) state.cell = "";
      select.value = state.cell;
      const of_training = state.set === "";
      for (const key of ["step", "kl"]) element.querySelector(`.filter-${key}`).hidden = !of_training;
      element.querySelectorAll("[name=sort] option").forEach((one) => {
        one.hidden = !of_training && !["", "long", "short"].includes(one.value);
      });
    };
    const read = (asked) => {
      for (const key of KEYS) state[key] = asked.get(key) ?? "";
      if (!(state.set in sets)) state.set = Object.keys(sets)[0];
      if (!(state.sort in SORTS)) state.sort = "";
      cells();
      for (const key of ["set", "source", "sort"]) element.querySelector(`[name=${key}]`).value = state[key];
      search.value = state.q;
      for (const key of RANGES) {
        const ends = state[key] ? bounds(state[key]) : ["", ""];
        ["from", "to"].forEach((end, n) => { element.querySelector(`[name=${key}-${end}]`).value = ends[n]; });
      }
    };
    return {
      element, count, state, read, cells,
      matching: () => matching(state, items),
      address: () => Object.fromEntries(KEYS.filter((key) => state[key] !== "").map((key) => [key, state[key]])),
      said: (n) => {
        const all = items.filter((one) => one.set === state.set).length;
        count.textContent = n === all ? `${trd.number(all)} listed` : `${trd.number(n)} of ${trd.number(all)} listed`;
        clear.hidden = KEYS.every((key) => key === "set" || !state[key]);
      },
    };
  };
})();
