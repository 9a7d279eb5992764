"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const make = (tag, className, text) => {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text; // never markup: the text is generated
  return element;
};

// Tables: a heading sorts by its column, numbers by value, what is missing last; the base policy stays on top.
const value = (row, i) => {
  const text = (row.cells[i]?.textContent ?? "").trim().replace("−", "-");
  const number = parseFloat(text);
  return Number.isNaN(number) ? text : number;
};
const order = (a, b) => {
  if (typeof a === typeof b) return typeof a === "number" ? a - b : a.localeCompare(b, "en");
  return typeof a === "number" ? -1 : 1;
};
for (const table of all("table.sortable")) {
  const heads = all("thead th", table);
  heads.forEach((head, i) => head.querySelector("button").addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const body = table.tBodies[0];
    const rows = [...body.rows].filter((row) => !row.classList.contains("pinned"));
    const missing = (row) => ["", "–"].includes(String(value(row, i)).split(" ")[0]);
    rows.sort((a, b) => missing(a) - missing(b) || (down ? -1 : 1) * order(value(a, i), value(b, i)));
    body.append(...rows);
  }));
}

// Legends: a selected method is highlighted in every plot of its section.
for (const chip of all("button.chip")) {
  chip.addEventListener("click", () => {
    const section = chip.closest("section");
    const chosen = chip.getAttribute("aria-pressed") !== "true";
    for (const same of all(`button.chip[data-m="${chip.dataset.m}"]`, section)) same.setAttribute("aria-pressed", chosen);
    for (const mark of all(`svg.plot g.${chip.dataset.m}`, section)) mark.classList.toggle("on", chosen);
    section.classList.toggle("focus", all('button.chip[aria-pressed="true"]', section).length > 0);
  });
}

// Samples: one prompt at a time, the responses of all methods side by side, hidden until requested.
const hidden = (text, shown) => {
  const box = make("div", "hidden-text");
  const button = make("button", "show", `Show text (${text.length} characters)`);
  const reveal = () => {
    const said = make("div", "said", text === "" ? "(empty)" : text);
    said.dir = "ltr";
    said.tabIndex = -1;
    box.replaceChildren(said);
    return said;
  };
  button.type = "button";
  button.addEventListener("click", () => reveal().focus());
  box.append(button);
  if (shown) reveal();
  return box;
};
const digits = (x) => (x === null ? "not scored" : x.toFixed(3));
for (const browser of all(".browser")) {
  const data = JSON.parse(browser.querySelector('script[type="application/json"]').textContent);
  const part = (name) => browser.querySelector(`[data-part="${name}"]`);
  const [kind, search, sort, method, every, place, prompt, answers] =
    ["kind", "search", "sort", "method", "every", "place", "prompt", "answers"].map(part);
  let at = 0;
  const matches = (i) => {
    if (kind.value && data.prompts[i].kind !== kind.value) return false;
    const word = search.value.toLowerCase();
    const texts = [data.prompts[i].text, ...data.rows.map((row) => row.answers[i]?.text ?? "")];
    return !word || texts.some((text) => text.toLowerCase().includes(word));
  };
  const card = (row, i) => {
    const answer = row.answers[i];
    const box = make("article", "answer");
    box.append(make("h5", "", row.name), make("p", "scores", `run ${row.run}, seed ${row.seed}`));
    if (answer === null) {
      box.append(make("p", "scores", "no response recorded"));
      return box;
    }
    box.append(make("p", "scores", `judge ${digits(answer.judge)}, reward ${digits(answer.reward)}, KL ${digits(answer.kl)}`));
    box.append(hidden(answer.text, every.checked));
    return box;
  };
  const rank = {
    table: () => 0,
    worst: (a, b) => (a ?? 2) - (b ?? 2),
    best: (a, b) => (b ?? -1) - (a ?? -1),
  };
  const draw = () => {
    const found = data.prompts.map((_, i) => i).filter(matches);
    at = Math.max(0, Math.min(at, found.length - 1));
    const i = found[at];
    prompt.replaceChildren();
    answers.replaceChildren();
    place.textContent = found.length ? `Prompt ${at + 1} of ${found.length}, kind: ${data.prompts[i].kind}` : "No prompt matches.";
    part("before").disabled = at <= 0;
    part("next").disabled = at >= found.length - 1;
    if (!found.length) return;
    prompt.append(hidden(data.prompts[i].text, every.checked));
    const rows = data.rows.filter((row) => row.name.toLowerCase().includes(method.value.toLowerCase()));
    const judge = (row) => row.answers[i]?.judge ?? null;
    rows.sort((a, b) => rank[sort.value](judge(a), judge(b)));
    answers.append(...rows.map((row) => card(row, i)));
    if (!rows.length) answers.append(make("p", "", "No method matches."));
  };
  part("before").addEventListener("click", () => { at -= 1; draw(); });
  part("next").addEventListener("click", () => { at += 1; draw(); });
  for (const control of [kind, sort, every]) control.addEventListener("change", draw);
  for (const control of [search, method]) control.addEventListener("input", draw);
  draw();
}
