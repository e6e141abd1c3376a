"use strict";
/* The list of the sample browser: thousands of rows, of which those in view are in the document.

   trd.rowList({label, columns, chosen})  {element, fill(items), select(item), move(by), focus()}

   `columns` are {name, head, cell(item)}, whose cell gives text or an element. chosen(item) is called when the reader
   goes to a row: by a click, by j, k and the arrows, Home, End, Page Up and Page Down. */
(() => {
  const { el } = trd;
  const HEIGHT = 34; // pixels of a row, as in samples.css
  const BEYOND = 8; // rows drawn above and below the view
  const PAGE = 10; // rows that Page Down goes

  trd.rowList = ({ label, columns, chosen }) => {
    const inside = el("div", { class: "list-inside", role: "presentation" });
    const view = el("div", { class: "list", tabindex: "0", role: "listbox", "aria-label": label }, inside);
    const head = el("div", { class: "list-row list-head", "aria-hidden": "true" },
      columns.map(({ name, head }) => el("span", { class: `in-${name}` }, head)));
    const element = el("div", { class: "list-holder" }, head, view);
    let items = [];
    let current = -1;
    let drawn = [0, 0];

    const row = (n) => el("div", {
      class: `list-row${n === current ? " current" : ""}`, role: "option", id: `sample-option-${n}`,
      "aria-selected": String(n === current), "aria-setsize": items.length, "aria-posinset": n + 1, "data-n": n,
    }, columns.map(({ name, cell }) => el("span", { class: `in-${name}` }, cell(items[n]))));

    const draw = (anew) => {
      const begin = Math.max(0, Math.floor(view.scrollTop / HEIGHT) - BEYOND);
      const end = Math.min(items.length, Math.ceil((view.scrollTop + view.clientHeight) / HEIGHT) + BEYOND);
      if (!anew && begin === drawn[0] && end === drawn[1]) return;
      drawn = [begin, end];
      inside.style.height = `${items.length * HEIGHT}px`;
      inside.replaceChildren(...Array.from({ length: end - begin }, (_, n) => {
        const made = row(begin + n);
        made.style.top = `${(begin + n) * HEIGHT}px`;
        return made;
      }));
      if (current >= begin && current < end) view.setAttribute("aria-activedescendant", `sample-option-${current}`);
      else view.removeAttribute("aria-activedescendant");
    };
    const reveal = () => {
      if (current < 0) return;
      const top = current * HEIGHT;
      if (top < view.scrollTop) view.scrollTop = top;
      else if (top + HEIGHT > view.scrollTop + view.clientHeight) view.scrollTop = top + HEIGHT - view.clientHeight;
    };
    const go = (n) => {
      if (!items.length) return;
      current = Math.max(0, Math.min(items.length - 1, n));
      reveal();
      draw(true);
      chosen(items[current]);
    };
    const move = (by) => go(current < 0 && by < 0 ? items.length - 1 : current + by);

    view.addEventListener("scroll", () => draw(false), { passive: true });
    new ResizeObserver(() => draw(false)).observe(view);
    view.addEventListener("click", (event) => {
      const at = event.target.closest("[data-n]");
      if (at) go(Number(at.dataset.n));
    });
    view.addEventListener("keydown", (event) => {
      if (event.altKey || event.ctrlKey || event.metaKey) return;
      const to = {
        ArrowDown: current + 1, ArrowUp: Math.max(0, current - 1), PageDown: current + PAGE,
        PageUp: Math.max(0, current - PAGE), Home: 0, End: items.length - 1,
      }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      go(to);
    });
    return {
      element,
      move,
      focus: () => view.focus(),
      fill: (all, item) => {
        items = all;
        element.classList.toggle("evaluated", Boolean(items[0]?.evaluated));
        current = items.indexOf(item);
        view.style.height = `${Math.min(Math.max(items.length, 1), 10) * HEIGHT + 2}px`;
        view.classList.toggle("empty", !items.length);
        draw(true);
        reveal();
        draw(true);
      },
      select: (item) => { current = items.indexOf(item); reveal(); draw(true); },
    };
  };
})();
