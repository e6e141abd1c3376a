"use strict";
/* The shell of the page: what every panel's script may use, and when it is called.

   A script registers    trd.panels.NAME = (root, data) => { ... }
   and the shell calls it once, as soon as its section is near the view or the address names it. `root` is an empty
   element of the section, `data` is the panel's data, unpacked. A panel may return a promise.

   trd.el(tag, attributes, ...children)   an element; a child that is no node becomes text, never markup
   trd.svg(tag, attributes, ...children)  the same of SVG
   trd.colour(name)                       the colour of the variable --NAME as it is now, for a canvas
   trd.onTheme(draw)                      `draw` is called after each change between light and dark
   trd.place()                            {panel, asked}: of the address #PANEL?KEY=VALUE, `asked` URLSearchParams
   trd.go(panel, {key: value})            writes that address without moving the page or the history
   trd.arrivals.NAME = (asked) => { ... } is called when the address names the panel, once its script has drawn it
   trd.number(value, digits)              a number for people, "-" for null

   Nothing here makes markup from text. The policy of the page would refuse it. */
const trd = (window.trd = { panels: {}, arrivals: {} });

(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const root = document.documentElement;
  const redraws = [];
  const drawn = new Map(); // name -> promise of its panel

  const filled = (made, attributes, children) => {
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
      else if (value === true) made.setAttribute(name, "");
      else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
    }
    made.append(...children.flat().filter((one) => one !== null && one !== undefined));
    return made;
  };
  trd.el = (tag, attributes, ...children) => filled(document.createElement(tag), attributes, children);
  trd.svg = (tag, attributes, ...children) => filled(document.createElementNS(SVG, tag), attributes, children);
  trd.colour = (name) => getComputedStyle(root).getPropertyValue(`--${name}`).trim();
  trd.onTheme = (draw) => redraws.push(draw);

  trd.number = (value, digits = 4) => {
    if (value === null || value === undefined) return "-";
    if (Number.isInteger(value) && Math.abs(value) < 1e15) return value.toLocaleString("en-US");
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(digits - 2);
    return Number(value.toPrecision(digits)).toString();
  };

  trd.place = () => {
    const [panel, query] = location.hash.slice(1).split("?", 2);
    return { panel, asked: new URLSearchParams(query || "") };
  };
  trd.go = (panel, asked) => {
    const query = new URLSearchParams(asked || {}).toString();
    history.replaceState(null, "", `#${panel}${query ? `?${query}` : ""}`);
  };

  const unpacked = async (name) => {
    const holder = document.getElementById(`data-${name}`);
    const bytes = Uint8Array.from(atob(holder.textContent), (c) => c.charCodeAt(0));
    holder.remove(); // the memory of what is drawn
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).json();
  };

  const draw = (place) => {
    const name = place.dataset.panel;
    if (!drawn.has(name)) {
      drawn.set(name, (async () => {
        place.setAttribute("aria-busy", "true");
        try {
          if (!trd.panels[name]) throw new Error("it has no script");
          await trd.panels[name](place, await unpacked(name));
        } catch (problem) {
          place.replaceChildren(trd.el("p", { class: "note" }, `This part could not be drawn (${problem.message}).`));
          console.error(problem);
        }
        place.removeAttribute("aria-busy");
        place.dataset.done = "";
      })());
    }
    return drawn.get(name);
  };

  const arrive = async () => {
    const { panel, asked } = trd.place();
    const section = panel && document.getElementById(panel);
    if (!section) return;
    const place = section.querySelector("[data-panel]");
    if (place) await draw(place);
    section.scrollIntoView();
    trd.arrivals[panel]?.(asked);
  };

  const theme = (name) => {
    root.dataset.theme = name;
    const button = document.getElementById("theme");
    button.textContent = name === "dark" ? "Light" : "Dark";
    button.setAttribute("aria-label", `Change to ${name === "dark" ? "light" : "dark"} colours`);
    redraws.forEach((one) => one());
  };

  trd.start = () => {
    const button = document.getElementById("theme");
    button.hidden = false;
    theme(root.dataset.theme);
    button.addEventListener("click", () => {
      theme(root.dataset.theme === "dark" ? "light" : "dark");
      try { localStorage.setItem("trd-theme", root.dataset.theme); } catch { /* it lasts as long as the page */ }
    });
    let before = null; // paper is white
    addEventListener("beforeprint", () => { before = root.dataset.theme; theme("light"); });
    addEventListener("afterprint", () => theme(before ?? root.dataset.theme));

    const places = [...document.querySelectorAll("[data-panel]")];
    const near = new IntersectionObserver((seen) => {
      for (const one of seen) if (one.isIntersecting) { near.unobserve(one.target); draw(one.target); }
    }, { rootMargin: "600px" });
    places.forEach((place) => near.observe(place));
    // The section at the top of the view is the current one of the navigation.
    const links = new Map([...document.querySelectorAll(".top nav a")].map((a) => [a.hash.slice(1), a]));
    const seen = new IntersectionObserver((entries) => {
      for (const one of entries) {
        if (!one.isIntersecting) continue;
        links.forEach((a, name) => (name === one.target.id ? a.setAttribute("aria-current", "true") : a.removeAttribute("aria-current")));
      }
    }, { rootMargin: "-80px 0px -75% 0px" });
    document.querySelectorAll("section.panel").forEach((section) => seen.observe(section));
    addEventListener("hashchange", arrive);
    arrive();
  };
})();
