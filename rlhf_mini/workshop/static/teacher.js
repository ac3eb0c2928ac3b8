// The projector: asks for the state and shows it. Texts of students and models are set as text.
"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const texts = JSON.parse(byId("texts").textContent);
  const say = (key, values = {}) => texts[key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
  const POLL = 2000; // milliseconds
  const percent = (x) => `${(100 * x).toFixed(0)} %`;

  function make(tag, properties, ...children) {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  }
  // One line of a scale from 0 to 100 %: name, interval, number.
  function line(name, share, more = "") {
    if (!share) return [make("span", {}, name), make("span", { className: "track" }), make("span", { className: "soft" }, say("none"))];
    const range = make("span", { className: "range" }), mean = make("span", { className: "mean" });
    range.style.left = `${100 * Math.max(0, share.low)}%`;
    range.style.right = `${100 * (1 - Math.min(1, share.high))}%`;
    mean.style.left = `${100 * share.share}%`;
    return [make("span", {}, name), make("span", { className: "track" }, range, mean),
      make("span", {}, `${percent(share.share)} (${percent(share.low)} – ${percent(share.high)})${more}`)];
  }

  const messages = (prompt) => make("p", { lang: "en" },
    ...prompt.map(({ role, content }) => make("span", {}, make("b", {}, `${role}: `), content, " ")));
  // Lines of [what stands before it, text].
  const pairs = (lines) => make("div", { className: "pair", lang: "en" },
    ...lines.flatMap(([before, text]) => [make("span", { className: "number" }, before), make("span", {}, text)]));
  function act(body) {
    return fetch("do", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  }

  let said = "", was = false; // what a button answered, until the next one; whether something was at work
  let drawn = {}; // what was shown last, by element: what has not changed stays, with its focus
  function draw(id, value, made) {
    const text = JSON.stringify(value);
    if (drawn[id] === text) return;
    drawn[id] = text;
    byId(id).replaceChildren(...made());
  }

  function show(state) {
    for (const name of ["labelers", "rankings"]) byId(name).textContent = state[name];
    byId("prompts").textContent = `${state.prompts}/${state.of_prompts}`;
    byId("phase").textContent = say("phase", { round: state.round, joined: state.students.length, phase: say(state.round < state.rounds ? "past" : state.phase) });
    byId("rounds").hidden = state.rounds < 2;
    const running = state.work?.status === "running", { training, votes } = state;
    const possible = { rank: true, vote: state.duels.length, train: !running, round: training && !running };
    for (const button of document.querySelectorAll("[data-what]")) { // they are for the present round
      button.disabled = state.round < state.rounds || !possible[button.dataset.what];
    }
    byId("export").href = `rankings.jsonl?hashed=1&round=${state.round}`;
    draw("rounds", [state.rounds, state.round], () => Array.from({ length: state.rounds }, (_, index) => {
      const link = make("a", { href: `?round=${index + 1}` }, say("round", { round: index + 1 }));
      if (index + 1 === state.round) link.setAttribute("aria-current", "page");
      return link;
    }));
    const { share, half_width } = state.instructgpt;
    byId("agreement").replaceChildren(
      ...line(say("among"), state.agreement), ...line(say("simulated"), state.with_simulated),
      ...line("InstructGPT", { share, low: share - half_width, high: share + half_width }));
    const work = running || state.work?.round === state.round ? state.work : null;
    if (was && !running) said = ""; // "something is at work" is over
    was = running;
    byId("training").hidden = !work;
    const step = work?.status === "running" && /(\d+)\/(\d+)/.exec(work.line);
    byId("progress").hidden = work?.status !== "running";
    if (step) Object.assign(byId("progress"), { max: step[2], value: step[1] }); else byId("progress").removeAttribute("value");
    if (work) byId("line").textContent = `${say(work.status)} ${work.line}`;
    byId("winner").hidden = !(votes || state.phase === "vote");
    byId("votes").textContent = votes ? say("votes", { number: votes.votes }) : "";
    byId("verdict").replaceChildren(...line(say("ours"), votes));
    byId("policies").hidden = !state.duels.length;
    draw("both", state.duels, () => state.duels.flatMap(({ prompt, ours, theirs }) => [messages(prompt), pairs([
      [say("of_ours", { votes: ours[1] }), ours[0]], [say("of_default", { votes: theirs[1] }), theirs[0]]])]));
    const others = training?.others;
    byId("others").hidden = !others;
    if (others) {
      byId("of-others").replaceChildren(...line(say("before"), others.before), ...line(say("everybody"), others.all),
        ...Object.entries(others.each).filter(([, one]) => one).sort((a, b) => b[1].share - a[1].share)
          .flatMap(([name, one]) => line(name, one)));
    }
    draw("split", state.split, () => (state.split.length ? state.split.flatMap(({ prompt, responses }) =>
      [messages(prompt), pairs(responses.map(([text, number]) => [String(number), text]))]) : [make("p", { className: "soft" }, say("none"))]));
    draw("names", state.students, () => state.students.map(([id, nickname]) => {
      const button = make("button", { type: "button", title: say("hide") }, nickname);
      button.addEventListener("click", async () => {
        if (!confirm(say("sure_hide", { nickname }))) return;
        await act({ what: "hide", student: id });
        await look();
      });
      return button;
    }));
  }

  async function look() {
    try {
      const response = await fetch(`state${location.search}`);
      const state = await response.json();
      if (response.ok) show(state);
      byId("fault").textContent = response.ok ? said : state.error;
    } catch {
      byId("fault").textContent = say("offline");
    }
  }
  for (const button of document.querySelectorAll("[data-what]")) {
    button.addEventListener("click", async () => {
      const sure = { train: "sure", round: "sure_round" }[button.dataset.what];
      if (sure && !confirm(say(sure))) return;
      const { error } = await (await act({ ...button.dataset })).json();
      said = error ?? "";
      await look();
    });
  }
  look();
  setInterval(look, POLL);
})();
