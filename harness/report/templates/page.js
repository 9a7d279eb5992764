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

// Legends: selected methods are highlighted in every plot of their section; a family selects its members.
const show = (section, name, chosen) => {
  for (const chip of all(`button.chip[data-m="${name}"]`, section)) chip.setAttribute("aria-pressed", chosen);
  for (const mark of all(`svg.plot g.${name}`, section)) mark.classList.toggle("on", chosen);
};
const settle = (section) => {
  const pressed = (name) => section.querySelector(`button.chip[data-m="${name}"]`).getAttribute("aria-pressed") === "true";
  for (const family of all("button.chip.family", section)) {
    family.setAttribute("aria-pressed", family.dataset.family.split(" ").every((i) => pressed(`m${i}`)));
  }
  section.classList.toggle("focus", all('button.chip[data-m][aria-pressed="true"]', section).length > 0);
};
for (const chip of all("button.chip")) {
  chip.addEventListener("click", () => {
    const section = chip.closest("section");
    const chosen = chip.getAttribute("aria-pressed") !== "true";
    if (chip.dataset.m) show(section, chip.dataset.m, chosen);
    else if (chip.dataset.family) for (const i of chip.dataset.family.split(" ")) show(section, `m${i}`, chosen);
    else for (const other of all("button.chip[data-m]", section)) show(section, other.dataset.m, false);
    settle(section);
  });
}

// Curves: the nearest point is read out under the pointer or by arrow keys; a plot is zoomed by buttons or keys and dragged.
const REACH = 30; // pixels from a point to the pointer
for (const box of all(".explore")) {
  const tip = box.querySelector(".tip");
  let lit = null;
  const point = (mark) => {
    if (lit) lit.classList.remove("lit");
    lit = mark ? mark.closest("g.m") : null;
    if (lit) lit.classList.add("lit");
    tip.hidden = !mark;
    if (!mark) return;
    const [name, ...rest] = mark.dataset.said.split(": ");
    tip.replaceChildren(make("b", "", name), document.createTextNode(rest.join(": ")));
    const [at, frame] = [mark.getBoundingClientRect(), box.getBoundingClientRect()];
    const left = Math.max(0, Math.min(at.left - frame.left + 14, frame.width - tip.offsetWidth));
    tip.style.left = `${left}px`;
    tip.style.top = `${at.top - frame.top + 16}px`;
  };
  const visible = (mark) => {
    const section = box.closest("section");
    return !section.classList.contains("focus") || mark.closest("g.m").classList.contains("on");
  };
  const middle = (mark) => {
    const r = mark.getBoundingClientRect();
    return [r.left + r.width / 2, r.top + r.height / 2];
  };
  for (const svg of all("svg.plot", box)) {
    const holder = svg.parentElement;
    const title = svg.getAttribute("aria-label");
    const whole = svg.getAttribute("viewBox").split(" ").map(Number);
    const marks = all("title", svg).map((text) => {
      const mark = text.parentElement;
      mark.dataset.said = text.textContent;
      text.remove(); // the browser's own tooltip would come on top
      return mark;
    });
    let view = [...whole];
    const look = () => {
      const [w, h] = [Math.min(view[2], whole[2]), Math.min(view[3], whole[3])];
      const x = Math.max(whole[0], Math.min(view[0], whole[0] + whole[2] - w));
      const y = Math.max(whole[1], Math.min(view[1], whole[1] + whole[3] - h));
      view = [x, y, w, h];
      svg.setAttribute("viewBox", view.join(" "));
      svg.classList.toggle("zoomed", w < whole[2]);
      point(null);
    };
    const zoom = (factor, x = view[0] + view[2] / 2, y = view[1] + view[3] / 2) => {
      const g = Math.max(whole[2] / 20, Math.min(view[2] * factor, whole[2])) / view[2];
      view = [x - (x - view[0]) * g, y - (y - view[1]) * g, view[2] * g, view[3] * g];
      look();
    };
    const reset = () => { view = [...whole]; look(); };
    const where = (event) => {
      const r = svg.getBoundingClientRect();
      return [view[0] + ((event.clientX - r.left) / r.width) * view[2], view[1] + ((event.clientY - r.top) / r.height) * view[3]];
    };
    const bar = make("div", "zoom");
    for (const [sign, said, act] of [["+", "Zoom in", () => zoom(0.6)], ["−", "Zoom out", () => zoom(1 / 0.6)], ["⟲", "Whole plot", reset]]) {
      const button = make("button", "", sign);
      button.type = "button";
      button.title = said;
      button.setAttribute("aria-label", `${said}: ${title}`);
      button.addEventListener("click", act);
      bar.append(button);
    }
    holder.prepend(bar);
    holder.tabIndex = 0;
    holder.setAttribute("role", "group");
    holder.setAttribute("aria-label", `${title}: arrow keys read the points, plus and minus zoom`);
    let [from, at] = [null, -1];
    svg.addEventListener("pointermove", (event) => {
      if (from) {
        const [x, y] = where(event);
        view = [view[0] + from[0] - x, view[1] + from[1] - y, view[2], view[3]];
        look();
        return;
      }
      const far = (mark) => Math.hypot(middle(mark)[0] - event.clientX, middle(mark)[1] - event.clientY);
      const near = marks.filter(visible).map((mark) => [far(mark), mark]).sort((a, b) => a[0] - b[0])[0];
      point(near && near[0] < REACH ? near[1] : null);
    });
    svg.addEventListener("pointerdown", (event) => {
      if (!svg.classList.contains("zoomed")) return;
      from = where(event);
      svg.setPointerCapture(event.pointerId);
    });
    for (const end of ["pointerup", "pointercancel"]) svg.addEventListener(end, () => { from = null; });
    svg.addEventListener("pointerleave", () => point(null));
    svg.addEventListener("dblclick", (event) => { event.preventDefault(); zoom(0.5, ...where(event)); });
    holder.addEventListener("blur", () => point(null));
    holder.addEventListener("keydown", (event) => {
      if (event.target !== holder) return;
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      const found = marks.filter(visible);
      if (step && found.length) {
        at = (at + step + found.length) % found.length;
        point(found[at]);
      } else if (event.key === "+") zoom(0.6);
      else if (event.key === "-") zoom(1 / 0.6);
      else if (event.key === "0" || event.key === "Escape") reset();
      else return;
      event.preventDefault();
    });
  }
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
