"use strict";
/* One chart, drawn by uPlot: lines that differ by dash and not by colour alone, a legend with the values under the
   cursor, marks, intervals, and the same numbers as a table for whoever does not see the picture.

   trd.chart(root, {
     title, unit, explains,              texts
     x: [1, 2, ...], xName: "step",
     lines: [{label, y: [...], colour, dash, low, high, points}],   colour and dash are numbers, from 0;
                                         with `run` and `name` in place of one legend entry a cell of a table
     marks: [{kind, at, said}],          kind: evaluation | checkpoint | restart
     log, share, zero                    log axis; y in percent; the axis holds 0
     group                               charts of one group share cursor and zoom
     stacked                             the lines are shares that stand on each other, from below
   })  ->  {element}

   A series with one value alone is drawn as a point. */
(() => {
  const DASHES = [[], [7, 4], [2, 3], [12, 3, 2, 3], [4, 2], [1, 5], [16, 4]];
  const COLOURS = trd.colours = 12; // those of shell.css
  const HEIGHT = 190;
  const groups = {}; // name -> charts

  const ink = (number) => trd.colour(`line-${number % COLOURS}`);
  const dashOf = (line) => DASHES[line.dash % DASHES.length];

  const sample = (line) => trd.svg("svg", { width: 26, height: 10, "aria-hidden": "true", class: "stroke" },
    trd.svg("line", { x1: 1, x2: 25, y1: 5, y2: 5, class: `stroke-${line.colour % COLOURS}`,
      "stroke-dasharray": dashOf(line).join(" ") || null }));

  const shown = (value, spec) =>
    value === null || value === undefined ? "-" : spec.share ? `${(100 * value).toFixed(1)}%` : trd.number(value);

  /* Numbers under the axis in few characters. */
  const tick = (value, spec) => {
    if (value === null) return "";
    if (spec.share) return `${+(100 * value).toFixed(1)}%`;
    const size = Math.abs(value);
    if (size >= 1e6) return `${+(value / 1e6).toPrecision(3)}M`;
    if (size >= 1e4) return `${+(value / 1e3).toPrecision(3)}k`;
    if (size !== 0 && size < 1e-3) return value.toExponential(0);
    return `${+value.toPrecision(4)}`;
  };

  const lastOf = (y) => { for (let i = y.length - 1; i >= 0; i--) if (y[i] !== null) return i; return null; };

  const table = (spec) => {
    const head = trd.el("tr", {}, trd.el("th", { scope: "col" }, spec.xName || "step"),
      spec.lines.map((line) => trd.el("th", { scope: "col" }, line.label)));
    const rows = spec.x.map((x, i) => trd.el("tr", {}, trd.el("th", { scope: "row" }, trd.number(x)),
      spec.lines.map((line) => trd.el("td", {}, shown(line.y[i], spec)))));
    return trd.el("div", { class: "scrolls short", tabindex: 0, role: "region", "aria-label": `${spec.title} as a table` },
      trd.el("table", {}, trd.el("thead", {}, head), trd.el("tbody", {}, rows)));
  };

  /* What marks and intervals add to the lines: drawn on the canvas, above the grid and below the lines. */
  const markings = (spec) => ({
    hooks: {
      drawAxes: [(u) => {
        const { left, top, width, height } = u.bbox;
        const ratio = devicePixelRatio || 1;
        u.ctx.save();
        for (const mark of spec.marks || []) {
          const x = u.valToPos(mark.at, "x", true);
          if (x < left - 1 || x > left + width + 1) continue;
          u.ctx.strokeStyle = u.ctx.fillStyle = trd.colour(mark.kind === "restart" ? "warn" : "muted");
          u.ctx.lineWidth = ratio;
          u.ctx.beginPath();
          if (mark.kind === "restart") {
            u.ctx.setLineDash([3 * ratio, 3 * ratio]);
            u.ctx.moveTo(x, top);
            u.ctx.lineTo(x, top + height);
            u.ctx.stroke();
            u.ctx.setLineDash([]);
          } else if (mark.kind === "checkpoint") {
            u.ctx.moveTo(x, top + height);
            u.ctx.lineTo(x, top + height - 7 * ratio);
            u.ctx.stroke();
          } else {
            const y = top + 5 * ratio, r = 4 * ratio;
            u.ctx.moveTo(x, y - r); u.ctx.lineTo(x + r, y); u.ctx.lineTo(x, y + r); u.ctx.lineTo(x - r, y);
            u.ctx.fill();
          }
        }
        for (const line of spec.lines) {
          if (!line.low) continue;
          u.ctx.strokeStyle = ink(line.colour);
          u.ctx.lineWidth = 2 * ratio;
          spec.x.forEach((at, i) => {
            if (line.low[i] === null || line.low[i] === undefined) return;
            const x = u.valToPos(at, "x", true);
            if (x < left - 1 || x > left + width + 1) return;
            u.ctx.beginPath();
            u.ctx.moveTo(x, u.valToPos(line.low[i], "y", true));
            u.ctx.lineTo(x, u.valToPos(line.high[i], "y", true));
            u.ctx.stroke();
          });
        }
        u.ctx.restore();
      }],
    },
  });

  const stackedUp = (lines) => {
    let below = null;
    return lines.map((line) => {
      below = line.y.map((value, i) => (value === null ? null : value + (below ? below[i] ?? 0 : 0)));
      return below;
    });
  };

  /* Where a log axis has numbers: at powers of ten, and within less than two of them at 2 and 5 as well. */
  const decades = (min, max) => {
    const found = [];
    const parts = max / min < 100 ? [1, 2, 5] : [1];
    for (let k = Math.floor(Math.log10(min)); k <= Math.ceil(Math.log10(max)); k++) {
      for (const part of parts) if (part * 10 ** k >= min && part * 10 ** k <= max) found.push(part * 10 ** k);
    }
    return found;
  };

  const options = (spec, width, values) => {
    const all = spec.lines.flatMap((line) => [...line.y, ...(line.low || []), ...(line.high || [])]);
    const there = all.filter((value) => value !== null && value !== undefined && (!spec.log || value > 0));
    const low = Math.min(...there, ...(spec.zero || spec.share ? [0] : [])), high = Math.max(...there);
    const top = spec.stacked ? 1 : spec.share && high > 0.9 ? 1 : high + (high - low || Math.abs(high) || 1) * 0.06;
    const axis = () => ({
      stroke: trd.colour("muted"), font: "11px system-ui, sans-serif",
      grid: { stroke: trd.colour("line"), width: 1 }, ticks: { stroke: trd.colour("line"), width: 1, size: 4 },
    });
    const xs = spec.x;
    return {
      width, height: HEIGHT, legend: { show: false }, padding: [8, 10, 0, 0],
      cursor: { sync: { key: spec.group || spec.title, setSeries: false }, drag: { x: true, y: false, uni: 20 },
        points: { size: 6 }, y: false },
      scales: {
        x: { time: false, range: xs.length < 2 ? () => [xs[0] - 1, xs[0] + 1] : undefined },
        y: spec.log ? { distr: 3 } : { range: () => [spec.share || spec.zero ? Math.min(0, low) : low - (top - high), top] },
      },
      axes: [
        { ...axis(), space: 44, size: 30, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000] },
        { ...axis(), size: 52, space: 30, splits: spec.log ? (u, i, min, max) => decades(min, max) : undefined, values: (u, ticks) => ticks.map((one) => tick(one, spec)) },
      ],
      series: [{}, ...spec.lines.map((line) => ({
        label: line.label, stroke: ink(line.colour), width: spec.stacked ? 1 : 1.75, dash: dashOf(line), spanGaps: true,
        show: !line.hidden, fill: spec.stacked ? `${ink(line.colour)}55` : undefined,
        points: { show: Boolean(line.points) || line.y.filter((one) => one !== null).length < 2, size: 6,
          fill: ink(line.colour) },
      }))],
      bands: spec.stacked ? spec.lines.slice(1).map((_, i) => ({ series: [i + 2, i + 1] })) : [],
      plugins: [markings(spec)],
    };
  };

  /* Shows the values at an index, or the last ones for null; `places` are the elements of each line's value. */
  const reading = (spec, at, places) => (index) => {
    at.textContent = index === null ? "last" : `${spec.xName || "step"} ${trd.number(spec.x[index])}`;
    spec.lines.forEach((line, i) => {
      const there = index === null ? lastOf(line.y) : index;
      places[i].textContent = there === null ? "-" : shown(line.y[there], spec);
    });
  };

  const toggle = (children, lines, redraw) => trd.el("button", {
    type: "button", class: "entry", "aria-pressed": "true",
    onclick: (event) => {
      const hidden = event.currentTarget.getAttribute("aria-pressed") === "true";
      event.currentTarget.setAttribute("aria-pressed", String(!hidden));
      for (const [i, line] of lines) { line.hidden = hidden; redraw(i, !hidden); }
    },
  }, children);

  /* One entry a line; of several runs a row for each run and a column for each metric. */
  const legendOf = (spec, redraw) => {
    const places = spec.lines.map(() => trd.el("span", { class: "value" }));
    const at = trd.el("span", { class: "at", role: "status" });
    const numbered = spec.lines.map((line, i) => [i, line]);
    let element;
    if (spec.lines.some((line) => line.run)) {
      const names = [...new Set(spec.lines.map((line) => line.name))], runs = [...new Set(spec.lines.map((line) => line.run))];
      const of = (run, name) => numbered.filter(([, line]) => line.run === run && line.name === name);
      const head = (scope) => ({
        run: (run) => { const own = numbered.filter(([, line]) => line.run === run);
          return trd.el("th", { scope }, toggle([sample({ ...own[0][1], dash: 0 }), trd.el("span", {}, run)], own, redraw)); },
        name: (name) => trd.el("th", { scope }, names.length > 1
          ? sample({ colour: 4, dash: spec.lines.find((line) => line.name === name).dash }) : null, " ", name),
      });
      // What there is more of goes down.
      const down = names.length > runs.length ? ["name", names, "run", runs] : ["run", runs, "name", names];
      const cell = (a, b) => trd.el("td", {}, (down[0] === "run" ? of(a, b) : of(b, a)).map(([i]) => places[i]));
      element = trd.el("div", { class: "lines-key scrolls" }, trd.el("table", { class: "of-runs" },
        trd.el("thead", {}, trd.el("tr", {}, trd.el("td"), down[3].map(head("col")[down[2]]))),
        trd.el("tbody", {}, down[1].map((a) => trd.el("tr", {}, head("row")[down[0]](a), down[3].map((b) => cell(a, b)))))));
    } else {
      element = trd.el("div", { class: "lines-key" }, numbered.map(([i, line]) =>
        toggle([sample(line), trd.el("span", {}, line.label), places[i]], [[i, line]], redraw)));
    }
    const show = reading(spec, at, places);
    show(null);
    return { element, at, show };
  };

  const spoken = (spec) => `${spec.title}: ${spec.lines.map((line) => {
    const last = lastOf(line.y);
    const first = line.y.findIndex((one) => one !== null);
    return last === null ? `${line.label} has no values`
      : `${line.label} from ${shown(line.y[first], spec)} to ${shown(line.y[last], spec)}`;
  }).join("; ")}. Arrow keys read values.`;

  trd.chart = (root, asked) => {
    // A log axis has no place for what is not above 0.
    const above = asked.lines.some((line) => line.y.some((value) => value > 0));
    const spec = { ...asked, log: asked.log && above };
    let plot = null;
    const values = spec.stacked ? stackedUp(spec.lines) : spec.lines.map((line) => line.y);
    const legend = legendOf(spec, (i, show) => plot?.setSeries(i + 1, { show }));
    const canvas = trd.el("div", { class: "plot", tabindex: 0, role: "img", "aria-label": spoken(spec) });
    const details = trd.el("details", { class: "as-table" }, trd.el("summary", {}, "As a table"));
    details.addEventListener("toggle", () => { if (details.open && details.children.length < 2) details.append(table(spec)); });
    const element = trd.el("figure", { class: "chart", "data-chart": spec.title },
      trd.el("figcaption", {}, trd.el("b", {}, spec.title), spec.unit ? trd.el("small", {}, spec.unit) : null,
        legend.at, spec.explains ? trd.el("span", { class: "about" }, spec.explains) : null),
      legend.element, canvas, details);
    root.append(element);

    const group = (groups[spec.group || spec.title] ||= []);
    const zoomTo = (min, max) => {
      if (plot && spec.x.length > 1) plot.setScale("x", min === null ? { min: spec.x[0], max: spec.x.at(-1) } : { min, max });
    };
    let whole = true;
    const draw = () => {
      const kept = plot && !whole && [plot.scales.x.min, plot.scales.x.max];
      plot?.destroy();
      const made = options(spec, Math.max(180, canvas.clientWidth), values);
      made.hooks = { setCursor: [(u) => legend.show(u.cursor.idx ?? null)] };
      plot = new uPlot(made, [spec.x, ...values], canvas);
      if (kept) zoomTo(...kept);
    };
    draw();
    group.push((min, max) => { whole = min === null; zoomTo(min, max); });
    // What a person does to one chart is done to its group, once uPlot has done it.
    let dragged = false;
    canvas.addEventListener("mousedown", () => { dragged = true; });
    addEventListener("mouseup", () => {
      if (!dragged) return;
      dragged = false;
      setTimeout(() => {
        const { min, max } = plot.scales.x;
        if (min > spec.x[0] || max < spec.x.at(-1)) group.forEach((other) => other(min, max));
      });
    });
    canvas.addEventListener("dblclick", () => setTimeout(() => group.forEach((other) => other(null))));
    canvas.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
      if (by === undefined || !plot) return;
      event.preventDefault();
      const from = plot.cursor.idx ?? (by > 0 ? -1 : spec.x.length);
      const to = Math.min(spec.x.length - 1, Math.max(0, from + by));
      plot.setCursor({ left: plot.valToPos(spec.x[to], "x"), top: HEIGHT / 2 });
    });
    let wide = canvas.clientWidth;
    new ResizeObserver(() => { if (canvas.clientWidth !== wide) { wide = canvas.clientWidth; draw(); } }).observe(canvas);
    trd.onTheme(draw);
    return { element };
  };
})();
