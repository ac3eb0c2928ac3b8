// Browsing the prompts of the comparison, the three stages side by side.

const LIST_LENGTH = 6; // prompts listed at a time

for (const prompt of prompts) {
  const { base, sft, ppo } = prompt.answers;
  const golds = [base.gold, sft.gold, ppo.gold];
  const best = Object.keys(stages).filter((stage) => prompt.answers[stage].gold === Math.max(...golds));
  prompt.winner = golds.includes(null) ? "" : best.length > 1 ? "tie" : best[0];
  const gain = (key) => (sft[key] === null || ppo[key] === null ? null : ppo[key] - sft[key]);
  prompt.gain = gain("gold");
  prompt.disagreement = prompt.gain === null || gain("rm_score") === null ? null : -prompt.gain * gain("rm_score");
  prompt.searchable = [...prompt.messages.map((message) => message.content), base.text, sft.text, ppo.text]
    .join("\n").toLowerCase();
}

const filters = byId("filters");
const orders = { // a prompt that was not scored comes last
  file: () => 0,
  gains: (a, b) => (b.gain ?? -9) - (a.gain ?? -9),
  losses: (a, b) => (a.gain ?? 9) - (b.gain ?? 9),
  disagreement: (a, b) => (b.disagreement ?? -99) - (a.disagreement ?? -99),
};
let order = "file", matches = prompts, current = prompts[0];

function fillSelect(select, what, values) {
  const counts = new Map();
  for (const value of values) if (value) counts.set(value, (counts.get(value) ?? 0) + 1);
  for (const [value, count] of [...counts].sort((a, b) => b[1] - a[1])) {
    select.append(make("option", { value }, `${named(what, value)} (${count})`));
  }
  select.closest("label").hidden = counts.size === 0;
}

function refilter() {
  const { use, novel, winner, search, disagree, microscope } = filters.elements;
  const text = search.value.trim().toLowerCase();
  matches = prompts.filter((prompt) => (!use.value || prompt.use_case === use.value)
    && (!novel.value || prompt.novel === novel.value)
    && (!winner.value || prompt.winner === winner.value)
    && (!disagree.checked || prompt.disagreement > 0)
    && (!microscope.checked || Object.keys(prompt.looks).length)
    && prompt.searchable.includes(text));
  matches.sort(orders[order]);
}
function refresh(keepCurrent) {
  refilter();
  if (matches.length && !(keepCurrent && matches.includes(current))) current = matches[0];
  show();
}
function setOrder(name) {
  order = name;
  for (const button of document.querySelectorAll("[data-order]")) {
    button.setAttribute("aria-pressed", String(button.dataset.order === name));
  }
  refresh(false);
}
function step(by) {
  if (!matches.length) return;
  const at = matches.indexOf(current);
  current = matches[at < 0 ? 0 : (at + by + matches.length) % matches.length];
  show();
}

function show(setAddress = true) { // the address names the prompt only once the reader has moved
  const at = matches.indexOf(current);
  byId("place").textContent = !matches.length ? say("no_match")
    : at < 0 ? say("hidden", { number: matches.length })
      : say("place", { at: at + 1, number: matches.length });
  byId("shown").hidden = !matches.length;
  const start = Math.max(0, at) - (Math.max(0, at) % LIST_LENGTH);
  byId("near").start = start + 1;
  byId("near").replaceChildren(...matches.slice(start, start + LIST_LENGTH).map((prompt) => {
    const button = make("button", { type: "button" }, make("span", { lang: "en" }, prompt.messages[prompt.messages.length - 1].content),
      make("span", { className: "number" }, signed(prompt.gain)));
    if (prompt === current) button.setAttribute("aria-current", "true");
    button.addEventListener("click", () => {
      current = prompt;
      show();
      byId("near").querySelector("[aria-current]").focus(); // show() has replaced the button that was pressed
    });
    return make("li", {}, button);
  }));
  if (!matches.length) { examine(null); return; }
  byId("prompt").replaceChildren(...current.messages.map(({ role, content }) => (
    make("p", { className: role }, make("b", {}, `${role}: `), content))));
  byId("about").textContent = [
    current.id, named("use_case", current.use_case), named("kind", current.kind),
    current.novel && current.novel !== "none"
      ? say("unseen", { what: current.novel === "both" ? say("both") : named("novel", current.novel) }) : "",
    current.disagreement > 0 ? say("disagree") : "",
  ].filter(Boolean).join(" · ");
  byId("answers").replaceChildren(...Object.keys(stages).map(answerColumn));
  byId("answers").classList.toggle("with-microscope", Boolean(byId("answers").querySelector("button")));
  if (setAddress && location.hash !== link()) history.replaceState(null, "", link());
  examine(current);
}
const link = () => `#prompt=${encodeURIComponent(current.id)}`;
function followLink() {
  const [, id] = location.hash.match(/^#prompt=(.*)$/) ?? [];
  const linked = id && prompts.find((prompt) => encodeURIComponent(prompt.id) === id);
  if (!linked) return false;
  current = linked;
  openTab("explorer");
  byId("shown").scrollIntoView();
  return true;
}

function answerColumn(stage) {
  const answer = current.answers[stage];
  const numbers = [[say("gold"), plain(answer.gold)], [say("rm"), signed(answer.rm_score)]];
  if (stage === "ppo") numbers.push([say("log_ratio"), plain(answer.log_ratio, 1)]);
  numbers.push([say("tokens"), String(answer.tokens ?? "–")]);
  const parts = Object.entries(answer.parts).map(([part, value]) => `${named("part", part)} ${plain(value)}`);
  const column = answerBox(stage, {
    badge: current.winner === stage ? say("best") : "", text: answer.text || say("empty"),
    note: answer.ended ? "" : say("truncated"), numbers,
  }, make("p", { className: "parts" }, parts.join(", ")));
  if (current.looks[stage]) {
    const button = make("button", { type: "button", className: "no-print" }, say("show_tokens"));
    button.addEventListener("click", () => moveToTokens(stage));
    column.append(button);
  }
  return column;
}

fillSelect(filters.elements.use, "use_case", prompts.map((prompt) => prompt.use_case));
fillSelect(filters.elements.novel, "novel", prompts.map((prompt) => prompt.novel));
filters.addEventListener("input", () => refresh(true));
filters.addEventListener("reset", () => setTimeout(() => refresh(true)));
filters.addEventListener("submit", (event) => event.preventDefault());
byId("previous").addEventListener("click", () => step(-1));
byId("next").addEventListener("click", () => step(1));
byId("surprise").addEventListener("click", () => {
  const others = matches.filter((prompt) => prompt !== current);
  if (others.length) { current = others[Math.floor(Math.random() * others.length)]; show(); }
});
for (const button of document.querySelectorAll("[data-order]")) {
  button.addEventListener("click", () => setOrder(button.dataset.order));
}
document.addEventListener("keydown", (event) => {
  const at = document.activeElement, by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  const here = at === document.body || (byId("explorer").contains(at) && !at.matches("input, select"));
  if (!by || !here || byId("explorer").hidden || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  step(by);
});
window.addEventListener("hashchange", () => { if (!followLink()) unfold(); });

opened.explorer = () => show();
refilter();
if (!followLink()) { show(false); unfold(); }
