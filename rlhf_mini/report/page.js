// What the parts of the page's script share: its data, its texts, folding, the theme button.
//
// page.py puts page.js, microscope.js, explorer.js and live.js into the page, in this order, as one script. The page's
// data is JSON; explorer.py declares it as the dataclasses Explorer, ShownPrompt, Answer, Look and Measure, and live.py
// as Live. The script uses their field names.

const { stages, measures, prompts, texts } = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

// Strings among `children` become text nodes. Model text enters the page only this way, never as HTML.
function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}
function signed(x, digits = 2) {
  if (x === null) return "–";
  return (x > 0 ? "+" : x < 0 ? "−" : "") + Math.abs(x).toFixed(digits);
}
const plain = (x, digits = 2) => (x === null ? "–" : x.toFixed(digits).replace("-", "−"));
// A fixed text of the page, filled in; and what a use case, a kind or a part is called.
const say = (key, values = {}) => texts[`script.${key}`].replace(/\{(\w+)\}/g, (_, name) => values[name]);
const named = (what, name) => texts[`${what}.${name}`] ?? name.split("_").join(" ");

// The column of one stage's answer; numbers are [name, text].
function answerBox(stage, { badge, text, note, numbers }, ...more) {
  return make("section", { className: `answer ${stage}` },
    make("h3", {}, stages[stage], make("span", { className: "badge" }, badge)),
    make("p", { className: "response", lang: "en" }, text, make("i", {}, note && ` ${note}`)),
    make("dl", {}, ...numbers.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)))),
    ...more);
}

// --- tabs and folds --------------------------------------------------------------------------------------------------

const tabs = [...document.querySelectorAll("[role=tab]")];
const opened = {}; // by the id of a tab's panel: what to do when it is opened
function openTab(name) {
  for (const tab of tabs) {
    const panel = tab.getAttribute("aria-controls"), chosen = panel === name;
    tab.setAttribute("aria-selected", String(chosen));
    tab.tabIndex = chosen ? 0 : -1;
    byId(panel).hidden = !chosen;
  }
  opened[name]?.();
}
for (const [at, tab] of tabs.entries()) {
  tab.addEventListener("click", () => openTab(tab.getAttribute("aria-controls")));
  tab.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by) return;
    event.preventDefault();
    event.stopPropagation();
    const next = tabs[(at + by + tabs.length) % tabs.length];
    openTab(next.getAttribute("aria-controls"));
    next.focus();
  });
}
// Opens what is folded around the element that the page's address names.
function unfold() {
  const named = byId(location.hash.slice(1)); // ids of sections have no character that an address would encode
  for (let at = named; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
  if (named) named.scrollIntoView();
}

byId("theme").addEventListener("click", () => {
  const root = document.documentElement, system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  root.dataset.theme = (root.dataset.theme ?? system) === "dark" ? "light" : "dark";
});
// Paper cannot be unfolded: print with everything open.
let folded = [];
window.addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details:not([open])")];
  for (const details of folded) details.open = true;
});
window.addEventListener("afterprint", () => { for (const details of folded) details.open = false; });
