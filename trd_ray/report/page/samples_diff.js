"use strict";
/* Which tokens two texts have in common: the longest common subsequence, found 32 tokens at a time.

   trd.diff.common(a, b)      {a, b}: for each token of a list of strings 1 where it is common, else 0
   trd.diff.tidied({a, b})    the same without common runs that are shorter than the changes around them

   The rows of the usual table are bit vectors here (Hyyro 2004): in row j bit i is 0 where the subsequence of a[..i] and
   b[..j] is longer than that of a[..i-1]. 16,000 tokens beside 16,000 take 8 million words, of which 32 MiB are kept to
   find the way back. */
(() => {
  const SHORT = 3; // a common run of fewer tokens between changes is chance more often than not

  const numbered = (...lists) => {
    const numbers = new Map();
    const number = (token) => numbers.get(token) ?? (numbers.set(token, numbers.size), numbers.size - 1);
    return lists.map((list) => Uint32Array.from(list, number));
  };

  const table = (a, b) => {
    const words = Math.ceil(a.length / 32);
    const places = new Map(); // token -> its places in a, as bits
    a.forEach((token, i) => {
      if (!places.has(token)) places.set(token, new Uint32Array(words));
      places.get(token)[i >>> 5] |= 1 << (i & 31);
    });
    const nowhere = new Uint32Array(words);
    let row = new Uint32Array(words).fill(0xffffffff);
    const rows = [];
    for (const token of b) {
      const found = places.get(token) || nowhere;
      const next = new Uint32Array(words);
      let carry = 0;
      for (let w = 0; w < words; w++) {
        const sum = row[w] + ((row[w] & found[w]) >>> 0) + carry; // below 2 ** 53
        carry = sum > 0xffffffff ? 1 : 0;
        next[w] = sum | (row[w] & ~found[w]);
      }
      rows.push(next);
      row = next;
    }
    return rows;
  };

  const between = (a, b, inA, inB, from) => {
    const rows = table(a, b);
    const bit = (j, i) => (rows[j][i >>> 5] >>> (i & 31)) & 1;
    let [j, i] = [b.length, a.length];
    while (i && j) {
      if (bit(j - 1, i - 1)) i--; // a[i - 1] is not needed
      else if (--j && !bit(j - 1, i - 1)) continue; // nor is b[j]
      else {
        i--;
        inA[from + i] = 1;
        inB[from + j] = 1;
      }
    }
  };

  const common = (listA, listB) => {
    const [a, b] = numbered(listA, listB);
    const found = { a: new Uint8Array(a.length), b: new Uint8Array(b.length) };
    const shorter = Math.min(a.length, b.length);
    let begin = 0;
    while (begin < shorter && a[begin] === b[begin]) begin++;
    let end = 0;
    while (end < shorter - begin && a[a.length - 1 - end] === b[b.length - 1 - end]) end++;
    found.a.fill(1, 0, begin).fill(1, a.length - end);
    found.b.fill(1, 0, begin).fill(1, b.length - end);
    between(a.subarray(begin, a.length - end), b.subarray(begin, b.length - end), found.a, found.b, begin);
    return found;
  };

  /* Runs in turn: {same, a, b}, where they begin in a and b and how long they are there. */
  const runs = ({ a, b }) => {
    const found = [];
    let [i, j] = [0, 0];
    while (i < a.length || j < b.length) {
      const begin = { a: i, b: j };
      const same = Boolean(a[i] && b[j]);
      if (same) while (a[i] && b[j]) [i, j] = [i + 1, j + 1];
      else {
        while (i < a.length && !a[i]) i++;
        while (j < b.length && !b[j]) j++;
      }
      found.push({ same, a: begin.a, b: begin.b, lengthA: i - begin.a, lengthB: j - begin.b });
    }
    return found;
  };

  const tidied = (flags) => {
    const kept = { a: flags.a.slice(), b: flags.b.slice() };
    const all = runs(flags);
    const size = (run) => Math.max(run.lengthA, run.lengthB);
    all.forEach((run, n) => {
      const [before, after] = [all[n - 1], all[n + 1]];
      if (!run.same || !before || !after || run.lengthA >= SHORT) return;
      if (size(before) < run.lengthA || size(after) < run.lengthA) return;
      kept.a.fill(0, run.a, run.a + run.lengthA);
      kept.b.fill(0, run.b, run.b + run.lengthB);
    });
    return kept;
  };

  trd.diff = { common, tidied };
})();
