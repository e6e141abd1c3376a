"use strict";
/* A text of the sample browser: its tokens, coloured, folded where it is long, and what is known of each.

   trd.texts.tokens(y, scale)       {pieces, special}: the text of each token, and which are special
   trd.texts.shown(element, text)   puts a text into an element; what would hide or reorder text becomes a label
   trd.texts.number(letter, scale)  the number that a letter of packed_row.SCALE stands for; null where it is not finite
   trd.texts.rounded(letter, scale) the same for people
   trd.texts.plain(y, scale)        the text without special tokens
   trd.texts.legend(what)           what the shades mean
   trd.texts.block(y, options)      the element of a text, see below

   Text enters as text nodes alone. */
(() => {
  const { el } = trd;
  // Control and format characters, lone surrogates and separators, as summary.md hides them; \n and \t are harmless.
  const HIDDEN = /((?![\n\t])[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}])\1*/gu;
  const FIRST_TOKENS = 1200; // shown of a text at first
  const FIRST_CHARS = 6000;
  // Shades begin at these numbers of nats; below the first there is none. One hue, darker (in the dark lighter) upwards.
  const SHADES = [0.01, 0.03, 0.1, 0.3, 1, 3];

  const code = (c) => `U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;

  const shown = (element, text) => {
    text = text.replace(/\r\n/g, "\n");
    let begin = 0;
    for (const found of text.matchAll(HIDDEN)) {
      if (found.index > begin) element.append(text.slice(begin, found.index));
      const times = found[0].length / found[1].length;
      element.append(el("span", { class: "hidden-char" }, code(found[1]) + (times > 1 ? ` × ${times}` : "")));
      begin = found.index + found[0].length;
    }
    if (begin < text.length) element.append(begin ? text.slice(begin) : text);
    return element;
  };

  const tokens = (y, scale) => {
    const special = new Set(y.special || []);
    if (y.lengths === undefined) return { pieces: null, special };
    const { letters } = scale;
    const long = [...(y.long || [])];
    const pieces = [];
    let at = 0;
    for (const letter of y.lengths) {
      let length = letters.indexOf(letter);
      if (length === letters.length - 1) length = long.shift();
      pieces.push(y.text.slice(at, at + length));
      at += length;
    }
    return { pieces, special };
  };

  const number = (letter, scale) => {
    const level = scale.letters.indexOf(letter);
    return level < 0 ? null : level === 0 ? 0 : scale.lowest * scale.ratio ** (level - 1);
  };

  const rounded = (letter, scale) => {
    const level = scale.letters.indexOf(letter);
    if (level < 0) return "not finite";
    if (level === 0) return `< ${scale.lowest}`;
    const value = Number(number(letter, scale).toPrecision(2));
    return level === scale.letters.length - 1 ? `≥ ${value}` : String(value);
  };

  const shade = (value) => (value === null ? SHADES.length : SHADES.filter((begin) => value >= begin).length);

  const legend = (what) => el("p", { class: "legend" },
    el("span", {}, `${what}, in nats:`),
    ...SHADES.map((begin, n) => el("span", { class: `shade-${n + 1} swatch` },
      n + 1 < SHADES.length ? `${begin} to ${SHADES[n + 1]}` : `${begin} and more`)),
    el("span", { class: "muted" }, "a token's number is rounded to within 6%"));

  const plain = (y, scale) => {
    const { pieces, special } = tokens(y, scale);
    return pieces ? pieces.filter((_, n) => !special.has(n)).join("") : y.text;
  };

  /* The element of a text, and go(n), which moves the reader to a token; null where the text has no tokens.
       label    for screen readers
       numbers  letters of the scale, one a token, or null: no shades
       marks    of a diff, 1 where a token is common, or null; `mark` is the class of the others
       told     told(n, piece) is called with the token that the reader is at */
  const block = (y, { label, scale, numbers = null, marks = null, mark = "", told = () => {} }) => {
    const { pieces, special } = tokens(y, scale);
    const text = el("div", { class: "text", tabindex: "0", role: "group", "aria-label": label });
    const more = el("button", { type: "button", class: "more", hidden: true });
    const holder = el("div", { class: "text-holder" }, text, more);
    if (!y.text) text.append(el("span", { class: "muted" }, "(no text)"));
    const size = pieces ? pieces.length : y.text.length;
    const first = pieces ? FIRST_TOKENS : FIRST_CHARS;
    const spans = [];
    let at = -1;

    const token = (n) => {
      const span = el("span", { class: "token" });
      const of = numbers && n < numbers.length ? shade(number(numbers[n], scale)) : 0;
      if (of) span.classList.add(`shade-${of}`);
      if (special.has(n)) span.classList.add("special");
      if (!pieces[n]) span.classList.add("part");
      if (marks && !marks[n]) span.classList.add(mark);
      if ((numbers || marks) && pieces[n].includes("\n")) span.classList.add("line-end");
      spans.push(span);
      return shown(span, pieces[n]);
    };
    const draw = (end) => {
      for (let n = spans.length; pieces && n < end; n++) {
        if (y.gap && n === y.gap.at) {
          text.append(el("span", { class: "gap" }, `[${trd.number(y.gap.tokens)} tokens are left out of this page]`));
        }
        text.append(token(n));
      }
      if (!pieces && y.text) {
        text.replaceChildren();
        shown(text, y.text.slice(0, end));
      }
      more.hidden = end >= size;
      more.textContent = `Show all ${size.toLocaleString("en-US")} ${pieces ? "tokens" : "characters"}`;
    };
    more.addEventListener("click", () => { draw(size); text.focus({ preventScroll: true }); });
    draw(size > first * 1.25 ? first : size);

    const go = (n, scroll = true) => {
      if (n < 0 || n >= size) return;
      if (n >= spans.length) draw(size);
      spans[at]?.classList.remove("at");
      spans[(at = n)].classList.add("at");
      if (scroll) spans[at].scrollIntoView({ block: "nearest" });
      told(n, pieces[n]);
    };
    if (pieces) {
      const place = (event) => spans.indexOf(event.target.closest(".token"));
      text.addEventListener("click", (event) => go(place(event), false));
      text.addEventListener("mouseover", (event) => { const n = place(event); if (n >= 0) told(n, pieces[n]); });
      text.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (!step || event.altKey || event.ctrlKey || event.metaKey) return;
        event.preventDefault();
        go(Math.max(0, at + step));
      });
    }
    return { holder, text, go: pieces ? go : null };
  };

  trd.texts = { block, legend, number, plain, rounded, shown, tokens };
})();
