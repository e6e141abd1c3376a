"use strict";
/* One sample whole: problem, y_o beside y_r, verdicts, and the prompts as they were sent.

   trd.sampleDetail({scale, changed, near})   {element, state, show(item, query)}

   `state` is {colour, view}: what colours the tokens, and under which teacher view. changed() is called when the reader
   chooses another. near(item) gives the other samples of the item's problem, as {title, item, go}. */
(() => {
  const { el } = trd;
  const { texts } = trd;
  const COLOURS = { kl: "KL", student: "student NLL", teacher: "teacher NLL", diff: "difference", none: "no colours" };
  const WHAT = { kl: "KL(teacher, student)", student: "−log p of the student", teacher: "−log p of the teacher" };
  const VIEWS = {
    student: ["Student's prompt", "from which y_o was sampled"],
    refine: ["Refine prompt", "from which y_r was sampled"],
    teacher: ["Teacher's view in the loss", "after which the teacher reads the trained trajectory"],
    trained: ["Student's view in the loss", "after which the student reads the trained trajectory"],
  };
  const ENDS = { stop: "ended by itself", length: "cut at the length limit", abort: "ended by the engine" };
  const LONG = 600; // characters of a text that stands open

  const fact = (name, value, title) => value === undefined || value === null || value === "" ? null
    : el("div", { title, class: /\n|.{90}/.test(value) ? "long" : null }, el("dt", {}, name), texts.shown(el("dd"), String(value)));

  /* A text of the data: folded where it is long. */
  const passage = (title, text, open = true) => {
    const whole = texts.block({ text }, { label: title }).holder;
    if (text.length <= LONG && open) return el("div", { class: "passage" }, el("h4", {}, title), whole);
    return el("details", { class: "passage" }, el("summary", {}, `${title} (${trd.number(text.length)} characters)`), whole);
  };

  const verdict = (y) => {
    const word = y.passed === true ? "passed" : y.passed === false ? "failed" : "not judged";
    const sign = y.passed === true ? "✓" : y.passed === false ? "✗" : "?";
    return el("span", { class: `on-sample ${word.replace(" ", "-")}` }, el("span", { "aria-hidden": "true" }, `${sign} `), word);
  };

  const facts = (y) => el("dl", { class: "facts" },
    fact("tokens", y.tokens === undefined ? null : trd.number(y.tokens)),
    fact("end", ENDS[y.finish] ?? y.finish),
    "extracted" in y ? fact("answer found", y.extracted ?? "the program in the text") : null,
    fact("score", y.score), ...(y.parts || []).map((one) => fact(one.name, one.score)),
    fact("verdict says", y.detail), fact("feedback", y.feedback),
    fact("policy version", y.version, "the version of the weights that sampled it"));

  trd.sampleDetail = ({ scale, changed, near, move }) => {
    const state = { colour: "kl", view: "" };
    const element = el("article", { class: "sample", "aria-label": "The sample" });
    const readout = el("p", { class: "readout", role: "status" });
    let shownItem = null;
    let query = "";

    const scoredOf = (item) => item.data.scored || [];
    /* The numbers of y's tokens: under the view that the reader chose, else the trained ones, else the first. */
    const scores = (item, y) => {
      const of = scoredOf(item).filter((one) => one.y === y);
      return of.find((one) => one.view === state.view) ?? of.find((one) => one.trained) ?? of[0] ?? null;
    };
    const quoted = (piece) => (piece === "" ? "a part of a character"
      : texts.shown(el("q"), piece.replace(/\n/g, "↵")));
    const chance = (letter) => {
      const value = texts.number(letter, scale);
      return value === null ? "" : ` (p ${trd.number(Math.exp(-value), 2)})`;
    };
    const told = (name, of) => (n, piece) => {
      const size = of ? of.kl.length : null;
      const place = `${name} token ${trd.number(n + 1)}${size ? ` of ${trd.number(size)}` : ""} `;
      readout.replaceChildren(place, quoted(piece));
      if (!of || n >= of.kl.length) readout.append(" has no numbers");
      else {
        readout.append(` KL ${texts.rounded(of.kl[n], scale)}, NLL of student ${texts.rounded(of.student[n], scale)}`
          + `${chance(of.student[n])}, of teacher ${texts.rounded(of.teacher[n], scale)}${chance(of.teacher[n])}`);
      }
    };

    const peaks = (block, of, pieces) => {
      if (!of || !block.go || !(state.colour in WHAT)) return null;
      const letters = of[state.colour];
      const values = Array.from(letters, (letter) => texts.number(letter, scale) ?? Infinity);
      const places = Array.from(values.keys()).sort((a, b) => values[b] - values[a] || a - b).slice(0, 5);
      return el("p", { class: "peaks" }, el("span", {}, "Highest: "), places.map((n) =>
        el("button", { type: "button", onclick: () => { block.go(n); block.text.focus({ preventScroll: true }); } },
          quoted(pieces[n]), ` ${texts.rounded(letters[n], scale)}`)));
    };

    const column = (item, name, marks) => {
      const y = item.data[name];
      const title = name === "y_o" ? "Attempt y_o" : "Refinement y_r";
      if (!y) return el("div", { class: "column" }, el("h4", {}, title), el("p", { class: "muted" }, "There is none."));
      const of = scores(item, name);
      const block = texts.block(y, {
        label: title, scale, numbers: of && state.colour in WHAT ? of[state.colour] : null,
        marks, mark: name === "y_o" ? "gone" : "come", told: told(name, of),
      });
      const { pieces } = texts.tokens(y, scale);
      const means = of && el("dl", { class: "facts scored-means" },
        fact("mean KL", trd.number(of.means.kl)), fact("highest", trd.number(of.highest)),
        fact("mean NLL of the student", trd.number(of.means.student)), fact("of the teacher", trd.number(of.means.teacher)),
        fact("under", `${of.view} view${of.trained ? ", trained on" : ""}`));
      const none = scoredOf(item).length && !of
        ? el("p", { class: "muted" }, "Nothing was recorded of its tokens: diagnostics.rows=N has N rows of a step scored on y_o "
          + "and y_r, under both views.") : null;
      return el("div", { class: `column ${name}` },
        el("h4", {}, title, " ", verdict(y)), block.holder, peaks(block, of, pieces), facts(y), means, none);
    };

    const diff = (item) => {
      const both = ["y_o", "y_r"].map((y) => item.data[y] && texts.tokens(item.data[y], scale).pieces);
      if (!both[0] || !both[1]) return null;
      item.diff ??= trd.diff.common(...both);
      return { all: item.diff, tidied: trd.diff.tidied(item.diff) };
    };
    const ofDiff = (found) => {
      const sum = (flags) => flags.reduce((a, b) => a + b, 0);
      const { a, b } = found.tidied;
      const kept = sum(a);
      return el("p", { class: "legend" },
        el("span", {}, `${trd.number(kept)} tokens are in both`),
        el("span", { class: "gone swatch" }, `${trd.number(a.length - kept)} only in y_o`),
        el("span", { class: "come swatch" }, `${trd.number(b.length - kept)} only in y_r`),
        el("span", { class: "muted" }, `the longest common subsequence has ${trd.number(sum(found.all.a))} tokens; runs of `
          + "one or two between changes are left out"));
    };

    const controls = (item) => {
      const scored = scoredOf(item).length > 0;
      const there = Object.keys(COLOURS).filter((key) => (key in WHAT ? scored : key === "none" || diff(item)));
      if (there.length < 2) return null;
      const radio = (key) => el("label", {}, el("input", {
        type: "radio", name: "colour", value: key, checked: key === state.colour,
        onchange: () => { state.colour = key; changed(); draw(`[name=colour][value=${key}]`); },
      }), COLOURS[key]);
      const views = [...new Set(scoredOf(item).map((one) => one.view))];
      const select = el("select", { name: "view", onchange: () => {
        state.view = select.value;
        changed();
        draw("[name=view]");
      } }, el("option", { value: "" }, "as trained"), views.map((one) => el("option", { value: one }, one)));
      select.value = views.includes(state.view) ? state.view : "";
      return el("div", { class: "controls" },
        el("fieldset", {}, el("legend", {}, "Colour by"), there.map(radio)),
        views.length > 1 ? el("label", {}, "teacher's view ", select) : null);
    };

    /* A prompt: text and special tokens in turn; a part [name, n] stands for the first n units of a text of the row. */
    const prompt = (item, runs) => {
      const named = { ...item.problem };
      for (const y of ["y_o", "y_r"]) if (item.data[y]) named[y] = texts.plain(item.data[y], scale);
      const text = el("div", { class: "text", tabindex: "0", role: "group", "aria-label": "Prompt" });
      runs.forEach((run, n) => {
        if (n % 2) text.append(texts.shown(el("span", { class: "token special" }), run));
        else for (const part of run) texts.shown(text, typeof part === "string" ? part : named[part[0]].slice(0, part[1]));
      });
      return text;
    };
    const views = (item) => {
      const found = Object.entries(item.data.views || {}).map(([name, runs]) => {
        const [title, why] = VIEWS[name];
        const same = typeof runs === "string";
        if (same) return el("p", { class: "muted" }, `${title}: the same tokens as the ${VIEWS[runs][0].toLowerCase()}.`);
        const made = el("details", { class: "view", ontoggle: () => {
          if (made.open && made.children.length === 1) made.append(prompt(item, runs));
        } }, el("summary", {}, `${title}, `, el("span", { class: "muted" }, why)));
        return made;
      });
      return found.length ? el("div", { class: "views" }, el("h4", {}, "As sent"), found) : null;
    };

    const ofRow = ({ data }) => el("dl", { class: "facts" },
      fact("source", data.source), fact("epoch", data.epoch), fact("rollout of the problem", data.sample_index),
      fact("teacher", data.teacher),
      fact("trained on", data.train === true ? data.trajectory : data.train === false ? "nothing" : null),
      fact("dropped because", data.dropped_because), fact("fault", data.fault),
      fact("refinements that passed", data.refine_candidates > 1
        ? `${data.refine_candidates_passed} of ${data.refine_candidates}` : null),
      fact("edited share", data.refine_edited_share),
      fact("cut from the refine prompt", data.refine_cut_tokens ? `${data.refine_cut_tokens} tokens` : null),
      fact("cut from the teacher's view", data.teacher_cut_tokens ? `${data.teacher_cut_tokens} tokens` : null));

    const draw = (focus) => {
      const item = shownItem;
      if (!item) return element.replaceChildren(el("p", { class: "muted" }, "No sample is chosen."));
      const found = state.colour === "diff" ? diff(item) : null;
      const scored = scoredOf(item).length > 0 && state.colour in WHAT;
      readout.replaceChildren(scored ? "Point at a token, or go through a text with the left and right arrow." : "");
      const { problem } = item;
      const others = near(item);
      element.replaceChildren(...[
        el("header", {},
          el("h3", {}, item.title, " ", el("span", { class: `cell cell-${item.cell}` }, trd.sampleCells[item.cell])),
          el("div", { class: "moves" },
            el("button", { type: "button", onclick: () => move(-1), title: "k" }, "Previous"),
            el("button", { type: "button", onclick: () => move(1), title: "j" }, "Next"))),
        ...(problem.turns || []).map((one) => passage(`Said before by ${one.role}`, one.content)),
        problem.problem === undefined ? el("p", { class: "muted" }, "The problem's text is not stored with these samples.")
          : passage("Problem", problem.problem),
        el("dl", { class: "facts" }, fact("problem", problem.id), fact("expected answer", problem.answer)),
        problem.reference ? passage("Reference y*", problem.reference, false) : null,
        controls(item), found ? ofDiff(found) : scored ? texts.legend(WHAT[state.colour]) : null,
        el("div", { class: "reading" },
          el("div", { class: item.evaluated ? "columns one" : "columns" },
            column(item, "y_o", found?.tidied.a), item.evaluated ? null : column(item, "y_r", found?.tidied.b)),
          readout),
        ofRow(item), views(item),
        others.length ? el("p", { class: "others" }, "The same problem: ", others.map((one) =>
          el("button", { type: "button", onclick: one.go }, one.title))) : null,
      ].filter(Boolean));
      if (focus) element.querySelector(focus)?.focus();
      trd.sampleHits(element, query);
    };
    return {
      element, state,
      read: (asked) => {
        state.colour = asked.get("colour") in COLOURS ? asked.get("colour") : "kl";
        state.view = asked.get("view") ?? "";
      },
      address: () => ({ ...(state.colour !== "kl" && { colour: state.colour }), ...(state.view && { view: state.view }) }),
      show: (item, q) => { shownItem = item; query = q; draw(); },
      missing: (...said) => { shownItem = null; element.replaceChildren(el("p", { class: "note" }, ...said)); },
    };
  };
})();
