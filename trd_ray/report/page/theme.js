"use strict";
// The colours are chosen before anything is drawn: as asked for last time, else as the system has them.
(() => {
  let asked = null;
  try { asked = localStorage.getItem("trd-theme"); } catch { /* a page from a file may have no storage */ }
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = asked === "dark" || asked === "light" ? asked : dark ? "dark" : "light";
})();
