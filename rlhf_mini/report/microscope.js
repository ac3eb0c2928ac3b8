// What is under the microscope: the numbers of each token of a response, recorded or just sampled.

const FULL_COLOUR = 0.65; // opacity of the colour behind a token whose measure is at the end of the scale or beyond
const visible = (text) => text.split("\n").join("⏎\n");
const titles = Object.values(measures).map(({ title }) => title);

let subject = null; // {answers, looks} by stage: a prompt of the file, or what was asked

// Puts another subject under the microscope; null if there is none.
function examine(another) {
  subject = another;
  byId("microscope").hidden = !subject;
  if (subject) showTokens();
}
// Shows one of its responses, and moves there.
function moveToTokens(stage) {
  document.forms.lens.elements.which.value = stage;
  byId("microscope").open = true;
  showTokens();
  byId("microscope").scrollIntoView();
  byId("tokens").querySelector("[tabindex='0']").focus({ preventScroll: true });
}
// The choices of the form: the stage, its look (if there is one), the measure to colour by.
function lens() {
  const { which, measure } = document.forms.lens.elements;
  return { stage: which.value, look: subject.looks[which.value], measure: measure.value };
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
    const end = subject.answers[stage].ended && n === look.text.length - 1;
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
document.forms.lens.addEventListener("input", showTokens);
