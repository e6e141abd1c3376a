"use strict";
/* The timeline: a row for each actor, full bars where it worked, a thin line where it waited.

   Buttons and keys move the view: + and - zoom, arrows move, Home shows all; a drag zooms to what it spans. */
(() => {
  const ROW = 22, BAR = 14, AXIS = 22, LEAST_MS = 20;
  // Each kind keeps its colour from run to run.
  const USUAL = { sample: 0, refine: 1, train: 2, verify: 3, evaluate: 5, sync: 6, start: 4, checkpoint: 4, record: 4 };

  const colourOf = (kind) => USUAL[kind.split(" ")[0]] ?? 4;

  const clock = (ms) => {
    const s = ms / 1000;
    if (s < 60) return `${+s.toFixed(s < 10 ? 2 : 1)} s`;
    const minutes = Math.floor(s / 60);
    if (minutes < 60) return `${minutes} min ${Math.round(s % 60)} s`;
    return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  };

  const stepOf = (span, width) => {
    const wanted = (span * 90) / width;
    const sizes = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 3e4, 6e4, 12e4, 3e5, 6e5, 18e5, 36e5, 72e5, 216e5];
    return sizes.find((one) => one >= wanted) || 864e5;
  };

  const table = (data) => {
    const rows = data.lanes.map((lane) => trd.el("tr", {}, trd.el("th", { scope: "row" }, `${lane.group}: ${lane.lane}`),
      trd.el("td", {}, `${lane.work_s.toFixed(1)} s`), trd.el("td", {}, `${lane.wait_s.toFixed(1)} s`),
      trd.el("td", {}, lane.work_s + lane.wait_s ? `${((100 * lane.work_s) / (lane.work_s + lane.wait_s)).toFixed(0)}%` : "-")));
    return trd.el("div", { class: "scrolls", tabindex: 0, role: "region", "aria-label": "Work and waiting of each lane" },
      trd.el("table", { class: "lanes-table" }, trd.el("thead", {}, trd.el("tr", {},
        ["lane", "working", "waiting", "working share"].map((one) => trd.el("th", { scope: "col" }, one)))),
      trd.el("tbody", {}, rows)));
  };

  trd.panels.timeline = (root, data) => {
    let view = [0, data.end_ms];
    let drag = null;
    const height = AXIS + data.lanes.length * ROW;
    const canvas = trd.el("canvas", { class: "lanes", tabindex: 0, role: "img",
      "aria-label": `Timeline of ${data.lanes.length} lanes over ${clock(data.end_ms)}; the table below has the sums` });
    const said = trd.el("p", { class: "about at", role: "status" }, "Point at a bar to read it.");
    const names = trd.el("div", { class: "lane-names", "aria-hidden": "true" },
      data.lanes.map((lane) => trd.el("div", { title: `${lane.group}: ${lane.lane}` }, lane.lane)));

    const draw = () => {
      const width = canvas.clientWidth, ratio = devicePixelRatio || 1;
      canvas.width = width * ratio;
      canvas.height = height * ratio;
      const c = canvas.getContext("2d");
      c.scale(ratio, ratio);
      const [from, to] = view;
      const px = (ms) => ((ms - from) / (to - from)) * width;
      c.font = "11px system-ui, sans-serif";
      const step = stepOf(to - from, width);
      for (let at = Math.ceil(from / step) * step; at <= to; at += step) {
        c.fillStyle = trd.colour("line");
        c.fillRect(Math.round(px(at)), AXIS - 4, 1, height);
        c.fillStyle = trd.colour("muted");
        if (px(at) < width - 40) c.fillText(clock(at), px(at) + 3, 12);
      }
      data.lanes.forEach((lane, i) => {
        const top = AXIS + i * ROW + (ROW - BAR) / 2;
        for (const [begin, length, kind] of lane.slices) {
          if (begin + length < from || begin > to) continue;
          const a = Math.max(-1, px(begin)), b = Math.min(width + 1, px(begin + length));
          const name = data.kinds[kind];
          if (name === "wait") {
            c.fillStyle = trd.colour("muted");
            c.fillRect(a, top + BAR / 2 - 0.5, Math.max(b - a, 0.5), 1);
            continue;
          }
          c.fillStyle = trd.colour(`line-${colourOf(name)}`);
          c.fillRect(a, top, Math.max(b - a, 0.75), BAR);
          if (b - a > c.measureText(name).width + 8) {
            c.fillStyle = trd.colour("paper");
            c.fillText(name, a + 4, top + BAR - 3.5);
          }
        }
      });
      c.fillStyle = trd.colour("warn");
      for (const [at] of data.marks.slice(1)) if (at >= from && at <= to) c.fillRect(px(at), AXIS - 6, 1.5, height);
      if (drag) {
        c.globalAlpha = 0.2;
        c.fillStyle = trd.colour("accent");
        c.fillRect(Math.min(drag[0], drag[1]), 0, Math.abs(drag[1] - drag[0]), height);
        c.globalAlpha = 1;
      }
    };

    const show = (from, to) => {
      const span = Math.min(Math.max(to - from, LEAST_MS), data.end_ms);
      const begin = Math.min(Math.max(0, from), data.end_ms - span);
      view = [begin, begin + span];
      draw();
    };
    const zoom = (by) => { const [a, b] = view; const m = (a + b) / 2, h = ((b - a) * by) / 2; show(m - h, m + h); };
    const move = (by) => { const [a, b] = view; const d = (b - a) * by; show(a + d, b + d); };
    const acts = { "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2), ArrowLeft: () => move(-0.25),
      ArrowRight: () => move(0.25), Home: () => show(0, data.end_ms) };
    canvas.addEventListener("keydown", (event) => {
      if (acts[event.key] && !event.ctrlKey && !event.metaKey) { event.preventDefault(); acts[event.key](); }
    });
    const x = (event) => event.clientX - canvas.getBoundingClientRect().left;
    const time = (at) => view[0] + (at / canvas.clientWidth) * (view[1] - view[0]);
    canvas.addEventListener("pointerdown", (event) => { if (event.pointerType === "mouse") drag = [x(event), x(event)]; });
    canvas.addEventListener("pointermove", (event) => {
      if (drag) { drag[1] = x(event); draw(); return; }
      const lane = data.lanes[Math.floor((event.clientY - canvas.getBoundingClientRect().top - AXIS) / ROW)];
      if (!lane) return;
      const at = time(x(event)), near = ((view[1] - view[0]) / canvas.clientWidth) * 2;
      const hit = lane.slices.find(([begin, length]) => at >= begin - near && at <= begin + length + near);
      said.textContent = hit ? `${lane.lane}: ${data.kinds[hit[2]]}, ${clock(hit[1])}, at ${clock(hit[0])}` : `${lane.lane}, at ${clock(at)}`;
    });
    addEventListener("pointerup", () => {
      if (!drag) return;
      const [a, b] = [Math.min(...drag), Math.max(...drag)];
      drag = null;
      if (b - a > 5) show(time(a), time(b)); else draw();
    });
    const button = (text, label, act) => trd.el("button", { type: "button", "aria-label": label, onclick: act }, text);
    root.append(
      trd.el("div", { class: "bar" }, button("+", "Zoom in", acts["+"]), button("−", "Zoom out", acts["-"]),
        button("←", "Earlier", acts.ArrowLeft), button("→", "Later", acts.ArrowRight), button("All", "Show all", acts.Home)),
      trd.el("div", { class: "lanes-and-names" }, names, canvas), said, table(data));
    canvas.style.height = `${height}px`;
    draw();
    new ResizeObserver(draw).observe(canvas);
    trd.onTheme(draw);
  };
})();
