// The script of the report: browsing prompts side by side, the token microscope, the theme button.
//
// page.html.jinja copies this file into the page. The page's data is JSON; rlhf_mini/report/explorer.py declares it as
// the dataclasses Explorer, ShownPrompt, Answer, Look and Measure. This file uses their field names.
"use strict";
(() => {
  const { stages, measures, prompts, texts } = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const LIST_LENGTH = 6; // prompts listed at a time
  const FULL_COLOUR = 0.65; // opacity of the colour behind a token whose measure is at the end of the scale or beyond

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

  // --- the prompts ---------------------------------------------------------------------------------------------------

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
    byId("microscope").hidden = !matches.length;
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
    if (!matches.length) return;
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
    showTokens();
  }
  const link = () => `#prompt=${encodeURIComponent(current.id)}`;
  function followLink() {
    const [, id] = location.hash.match(/^#prompt=(.*)$/) ?? [];
    const linked = id && prompts.find((prompt) => encodeURIComponent(prompt.id) === id);
    if (!linked) return false;
    current = linked;
    show();
    byId("shown").scrollIntoView();
    return true;
  }

  function answerColumn(stage) {
    const answer = current.answers[stage];
    const numbers = [[say("gold"), plain(answer.gold)], [say("rm"), signed(answer.rm_score)]];
    if (stage === "ppo") numbers.push([say("log_ratio"), plain(answer.log_ratio, 1)]);
    numbers.push([say("tokens"), String(answer.tokens ?? "–")]);
    const parts = Object.entries(answer.parts).map(([part, value]) => `${named("part", part)} ${plain(value)}`);
    const column = make("section", { className: `answer ${stage}` },
      make("h3", {}, stages[stage], make("span", { className: "badge" }, current.winner === stage ? say("best") : "")),
      make("p", { className: "response", lang: "en" }, answer.text || say("empty"),
        make("i", {}, answer.ended ? "" : ` ${say("truncated")}`)),
      make("dl", {}, ...numbers.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)))),
      make("p", { className: "parts" }, parts.join(", ")));
    if (current.looks[stage]) {
      const button = make("button", { type: "button", className: "no-print" }, say("show_tokens"));
      button.addEventListener("click", () => {
        document.forms.lens.elements.which.value = stage;
        showTokens();
        byId("microscope").scrollIntoView();
        byId("tokens").querySelector("[tabindex='0']").focus({ preventScroll: true });
      });
      column.append(button);
    }
    return column;
  }

  // --- the token microscope ------------------------------------------------------------------------------------------

  const visible = (text) => text.split("\n").join("⏎\n");
  const titles = Object.values(measures).map(({ title }) => title);

  // The choices of the form: the stage, its look at the current prompt (if there is one), the measure to colour by.
  function lens() {
    const { which, measure } = document.forms.lens.elements;
    return { stage: which.value, look: current.looks[which.value], measure: measure.value };
  }
  // [name, text] of everything that is measured at token n.
  function numbersOf(look, n) {
    return [[say("log_p"), plain(look.logprob[n])], [say("sft_log_p"), plain(look.ref_logprob[n])],
      ...Object.entries(measures).map(([name, { title }]) => [title, signed(look.measures[name][n], 3)])];
  }

  function showTokens() {
    const { stage, look, measure } = lens();
    byId("no-look").hidden = Boolean(look);
    byId("look").hidden = !look;
    if (!look) return;
    const { title, how, scale } = measures[measure];
    byId("how").textContent = `${title}: ${how}`;
    byId("low").textContent = signed(-scale);
    byId("high").textContent = say("beyond", { value: signed(scale) });
    byId("score").textContent = say("score", { score: signed(look.score) });
    byId("tokens").replaceChildren(...look.text.map((text, n) => {
      const value = look.measures[measure][n];
      const end = current.answers[stage].ended && n === look.text.length - 1;
      const span = make("span", { className: value < 0 ? "token below" : "token", tabIndex: n ? -1 : 0 },
        end ? " ⟨end⟩" : visible(text));
      span.setAttribute("role", "option");
      span.setAttribute("aria-selected", "false");
      span.setAttribute("aria-label", `${end ? say("end") : text}: ${title} ${signed(value)}`);
      span.style.setProperty("--strength", (FULL_COLOUR * Math.min(1, Math.abs(value) / scale)).toFixed(2));
      span.addEventListener("pointerenter", () => readOut(n));
      span.addEventListener("focus", () => readOut(n));
      return span;
    }));
    const head = [say("token"), say("log_p"), say("sft_log_p"), ...titles, say("sft_top"), say("its_log_p")];
    byId("numbers").replaceChildren(
      make("thead", {}, make("tr", {}, ...head.map((name) => make("th", { scope: "col" }, name)))),
      make("tbody", {}, ...look.text.map((text, n) => make("tr", {}, make("th", { scope: "row" }, JSON.stringify(text)),
        ...numbersOf(look, n).map(([, number]) => make("td", {}, number)),
        make("td", {}, JSON.stringify(look.ref_top[n])), make("td", {}, plain(look.ref_top_logprob[n]))))));
    readOut(0);
  }

  function readOut(n) {
    const { look, measure } = lens();
    [...byId("tokens").children].forEach((span, at) => {
      span.tabIndex = at === n ? 0 : -1;
      span.setAttribute("aria-selected", String(at === n));
    });
    byId("token").textContent = say("at_token", { text: JSON.stringify(look.text[n]), at: n + 1, number: look.text.length });
    byId("readout").replaceChildren(...numbersOf(look, n).map(([name, number]) => (
      make("div", { className: name === measures[measure].title ? "chosen" : "" },
        make("dt", {}, name), make("dd", {}, number)))));
    byId("ref-top").textContent = look.ref_top[n] === look.text[n]
      ? say("same_top")
      : say("other_top", { token: JSON.stringify(look.ref_top[n]), number: plain(look.ref_top_logprob[n]) });
  }

  byId("tokens").addEventListener("keydown", (event) => {
    const spans = [...byId("tokens").children], at = spans.indexOf(document.activeElement);
    const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: spans.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    spans[Math.min(spans.length - 1, Math.max(0, to))].focus();
  });

  // --- the controls --------------------------------------------------------------------------------------------------

  fillSelect(filters.elements.use, "use_case", prompts.map((prompt) => prompt.use_case));
  fillSelect(filters.elements.novel, "novel", prompts.map((prompt) => prompt.novel));
  filters.addEventListener("input", () => refresh(true));
  filters.addEventListener("reset", () => setTimeout(() => refresh(true)));
  filters.addEventListener("submit", (event) => event.preventDefault());
  document.forms.lens.addEventListener("input", showTokens);
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
    if (!by || !here || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    step(by);
  });
  window.addEventListener("hashchange", followLink);
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

  refilter();
  if (!followLink()) show(false);
})();
