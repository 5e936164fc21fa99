"use strict";
const all = (selector, inside = document) => Array.from(inside.querySelectorAll(selector));
const filters = document.querySelector(".filters");
const chosen = { verdict: "", experiment: "", param: "" };

// Tables. A click on a heading sorts its column, a second one reverses it: numbers as numbers, empty cells last, equal
// rows as they stand.
for (const table of all("table.sortable")) {
  const heads = Array.from(table.tHead.rows[0].cells);
  const body = table.tBodies[0];
  heads.forEach((head, column) => {
    const key = (row) => {
      const text = row.cells[column].textContent.trim();
      if (["", "–", "not finite"].includes(text)) return null;
      return head.classList.contains("number") ? parseFloat(text.replace("−", "-").replaceAll(" ", "")) : text;
    };
    head.querySelector("button").addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
      const rows = Array.from(body.rows, (row) => ({ row, key: key(row) }));
      rows.sort((a, b) => {
        if (a.key === null || b.key === null) return (a.key === null) - (b.key === null);
        return a.key < b.key ? -sign : a.key > b.key ? sign : 0;
      });
      body.append(...rows.map(({ row }) => row));
    });
  });
}

// Legends: a click hides what an entry stands for; "every seed" folds the single runs.
function refresh(chart) {
  const off = all("[data-group][aria-pressed=false]", chart).map((button) => button.dataset.group);
  const seeds = chart.querySelector(".seeds")?.getAttribute("aria-pressed") !== "false";
  for (const mark of all(".mark", chart)) {
    const { group, param } = mark.dataset;
    const out = off.includes(group) || (mark.classList.contains("seed") && !seeds);
    mark.classList.toggle("off", out || (chosen.param !== "" && param !== "" && param !== chosen.param));
  }
}
function equip(chart) {
  for (const button of all(".legend button", chart)) {
    button.addEventListener("click", () => {
      button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") === "false");
      refresh(chart);
    });
  }
  for (const svg of all(".panel > svg", chart)) hover(svg);
}

// Points: the nearest one under the pointer, or the one that the arrow keys have reached.
const tip = document.getElementById("tip");
function points(svg) {
  return all(".mark[data-at]:not(.off)", svg).flatMap((mark) => {
    const at = mark.dataset.at.split(" ").map(Number);
    return mark.dataset.words.split("|").map((words, i) => ({ mark, words, x: at[2 * i], y: at[2 * i + 1] }));
  });
}
function show(svg, point) {
  svg.querySelector(".dot")?.remove();
  tip.hidden = point === undefined;
  if (tip.hidden) return;
  const dot = document.createElementNS(svg.namespaceURI, "circle");
  for (const [name, value] of [["class", "dot"], ["cx", point.x], ["cy", point.y], ["r", 4]]) dot.setAttribute(name, value);
  svg.append(dot);
  tip.textContent = [point.mark.dataset.name, point.words].filter(Boolean).join("\n");
  const place = new DOMPoint(point.x, point.y).matrixTransform(svg.getScreenCTM());
  const right = document.documentElement.clientWidth - tip.offsetWidth - 4;
  tip.style.left = `${Math.max(4, Math.min(place.x + 10, right)) + window.scrollX}px`;
  tip.style.top = `${place.y + 12 + window.scrollY}px`;
}
function hover(svg) {
  let at = -1;
  svg.addEventListener("pointermove", (event) => {
    const { x, y } = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    const far = (point) => Math.hypot(point.x - x, point.y - y);
    const near = points(svg).reduce((best, point) => (far(point) < far(best) ? point : best), { x: Infinity, y: 0 });
    show(svg, far(near) < 16 ? near : undefined);
  });
  svg.addEventListener("pointerleave", () => show(svg));
  svg.addEventListener("blur", () => show(svg));
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, Escape: 0 }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    const every = points(svg);
    if (every.length === 0) return show(svg);
    at = step === 0 ? -1 : (Math.max(at + step, -1) + every.length) % every.length;
    show(svg, step === 0 ? undefined : every[at]);
  });
}

all(".chart").forEach(equip);

// A claim that unfolds shows its figure too.
let printing = false;
for (const claim of all(".claim[data-figure]")) {
  claim.addEventListener("toggle", () => {
    if (!claim.open || printing || claim.querySelector(".chart")) return;
    const chart = document.getElementById(claim.dataset.figure).cloneNode(true);
    chart.removeAttribute("id");
    claim.append(chart);
    equip(chart);
  });
}

// Filters.
function filter() {
  for (const name of Object.keys(chosen)) chosen[name] = filters.elements[name].value;
  const { verdict, experiment, param } = chosen;
  const claims = all(".claim");
  for (const claim of claims) {
    const { verdict: its, experiment: of, params } = claim.dataset;
    claim.hidden =
      (verdict !== "" && its !== verdict) ||
      (experiment !== "" && of !== experiment) ||
      (param !== "" && !params.split(" ").includes(param));
  }
  for (const group of all(".claims")) group.hidden = all(".claim:not([hidden])", group).length === 0;
  for (const section of all("section[data-experiment]")) {
    const other = experiment !== "" && section.dataset.experiment !== "" && section.dataset.experiment !== experiment;
    const claims = all(".claims", section);
    section.hidden = other || (verdict !== "" && !claims.some((group) => !group.hidden));
  }
  for (const row of all("tr[data-experiment], tr[data-param]")) {
    const { experiment: of, param: its } = row.dataset;
    row.hidden =
      (experiment !== "" && of !== undefined && of.split(" ")[0] !== experiment) ||
      (param !== "" && its !== undefined && its !== param);
  }
  all(".chart").forEach(refresh);
  const left = claims.filter((claim) => !claim.hidden).length;
  filters.querySelector(".shown").textContent = left < claims.length ? `${left} of ${claims.length} claims` : "";
}
filters?.addEventListener("change", filter);
filters?.addEventListener("submit", (event) => event.preventDefault());

// A link into something folded opens it; so does printing.
function reveal() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target === null) return;
  if (target.closest("[hidden]")) {
    filters.reset();
    filter();
  }
  for (let one = target; one !== null; one = one.parentElement) if (one.tagName === "DETAILS") one.open = true;
  target.scrollIntoView();
}
window.addEventListener("hashchange", reveal);
const opened = [];
window.addEventListener("beforeprint", () => {
  printing = true;
  opened.push(...all("details:not([open]):has(dl, .chart)"));
  for (const one of opened) one.open = true;
});
window.addEventListener("afterprint", () => {
  for (const one of opened.splice(0)) one.open = false;
  setTimeout(() => (printing = false));
});

for (const button of all(".copy")) {
  button.addEventListener("click", async () => {
    const code = button.previousElementSibling;
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code);
      button.textContent = "Selected";
    }
  });
}

// From `report --serve`: a newer page replaces this one; what is open and chosen stays.
if ("live" in document.body.dataset) {
  const kept = JSON.parse(sessionStorage.getItem("kept") ?? "{}");
  for (const one of all("details")) if (kept.open?.includes(one.id || one.textContent.slice(0, 60))) one.open = true;
  for (const [name, value] of Object.entries(kept.chosen ?? {})) filters.elements[name].value = value;
  filter();
  if (kept.top) window.scrollTo(0, kept.top);
  setInterval(async () => {
    try {
      const now = await (await fetch("version", { cache: "no-store" })).text();
      if (now !== document.body.dataset.live) {
        const open = all("details[open]").map((one) => one.id || one.textContent.slice(0, 60));
        sessionStorage.setItem("kept", JSON.stringify({ open, chosen, top: window.scrollY }));
        location.reload();
      }
    } catch {
      // The server has gone; the page stays.
    }
  }, 2000);
}
reveal();
