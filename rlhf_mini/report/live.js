// "Try it": a prompt of the reader's own, answered by base, SFT and PPO beside each other, token by token.
//
// gpt2.js runs the models in a Web Worker, so that the page never freezes. This file only asks and shows.

if (byId("live")) {
  const { tokenizer, options, room, models } = JSON.parse(byId("live").textContent);
  const form = byId("ask"), reply = byId("reply"), CHARACTERS_A_TOKEN = 16; // no token of any size worth packing is longer

  const worker = new Worker(URL.createObjectURL(new Blob([byId("engine").textContent], { type: "text/javascript" })));
  worker.postMessage({ type: "load", tokenizer, options });
  // The base, which stands before this script, begins to answer while the browser still reads the other models.
  function send(names) {
    for (const name of names) {
      worker.postMessage({ type: "model", name, packed: { ...models[name], data: byId(`weights-${name}`).textContent } });
    }
  }
  const [first, ...others] = Object.keys(models);
  send([first]);
  document.addEventListener("DOMContentLoaded", () => send(others));

  let question = 0; // number of the last question; answers to earlier ones are dropped
  let chats = {}; // by stage: what it was asked
  let samples = {}; // by stage: its samples {text, ids, ended, score}; without ids while it is still talking
  let looks = {};

  const finished = (stage) => samples[stage].filter(({ ids }) => ids);
  // The sample to show: the one with the highest score, or the first one while none has ended.
  const picked = (stage) => finished(stage).reduce((best, one) => (best && best.score >= one.score ? best : one), null)
    ?? samples[stage][0];

  function ask(of_stages, status) {
    [chats, samples, looks] = [of_stages, {}, {}];
    const number = Number(form.elements.best.value);
    for (const stage of Object.keys(stages)) samples[stage] = Array.from({ length: number }, () => ({ text: "" }));
    worker.postMessage({
      type: "ask", id: ++question, chats, samples: number,
      temperature: Number(form.elements.temperature.value), seed: Number(form.elements.seed.value),
    });
    byId("stop").disabled = false;
    reply.hidden = true;
    byId("status").textContent = status;
    for (const stage of Object.keys(stages)) showStage(stage);
    examine(null);
  }
  function askNew() {
    const content = form.elements.prompt.value.trim();
    if (!content) { form.elements.prompt.focus(); return; }
    if (content.length > room * CHARACTERS_A_TOKEN) { tooLong(); return; }
    const messages = [{ role: "user", content }];
    ask(Object.fromEntries(Object.keys(stages).map((stage) => [stage, messages])), say("working"));
  }
  const tooLongText = () => say("too_long", { room, words: Math.floor(0.7 * room) });
  function tooLong() {
    stop(tooLongText());
    form.elements.prompt.focus();
  }
  function stop(status) {
    question++;
    worker.postMessage({ type: "stop" });
    byId("stop").disabled = true;
    byId("status").textContent = status;
  }

  function showStage(stage) {
    const of_stage = samples[stage], shown = picked(stage), done = finished(stage), talking = !shown.ids && question;
    const numbers = [[say("rm"), signed(shown.score ?? null)], [say("tokens"), String(shown.ids?.length ?? "–")]];
    if (of_stage.length > 1) numbers.push([say("samples"), `${done.length}/${of_stage.length}`]);
    const earlier = chats[stage].slice(0, -1).map(({ role, content }) => make("p", { className: `turn ${role}`, lang: "en" }, content));
    const box = answerBox(stage, {
      badge: of_stage.length > 1 && shown.ids ? say("picked") : "",
      text: shown.text || (talking ? "…" : say("empty")), note: shown.ids && !shown.ended ? say("truncated") : "", numbers,
    });
    box.querySelector(".response").before(...earlier);
    if (of_stage.length > 1) {
      const others = done.slice().sort((a, b) => b.score - a.score);
      box.append(make("details", { open: byId("live-answers").querySelector(`.${stage} details`)?.open ?? false },
        make("summary", {}, say("all_samples")),
        make("ol", { className: "samples", lang: "en" }, ...others.map((one) => make("li", {},
          make("span", { className: "number" }, `${one === shown ? "★ " : ""}${signed(one.score)}`), ` ${one.text}`)))));
    }
    if (shown.ids && stage !== "base" && options.look) {
      const button = make("button", { type: "button", className: "no-print" }, say("show_tokens"));
      button.addEventListener("click", () => {
        looks = {};
        for (const one of ["sft", "ppo"]) {
          const { ids } = picked(one);
          if (ids) worker.postMessage({ type: "look", id: question, stage: one, then: stage, messages: chats[one], ids });
        }
      });
      box.append(button);
    }
    const old = byId("live-answers").querySelector(`.${stage}`);
    if (old) old.replaceWith(box); else byId("live-answers").append(box);
  }

  worker.onmessage = ({ data }) => {
    if (data.id !== question) return;
    const { type, stage } = data;
    if (type === "token") {
      samples[stage][data.sample].text = data.text;
      if (picked(stage) === samples[stage][data.sample]) showStage(stage);
    } else if (type === "answer") {
      samples[stage][data.sample] = data;
      showStage(stage);
    } else if (type === "too_long") tooLong();
    else if (type === "failed") stop(say("failed", { message: data.message }));
    else if (type === "done") {
      byId("stop").disabled = true;
      byId("status").textContent = say("answered", { tokens: data.tokens, speed: Math.round(data.tokens / data.seconds) });
      reply.hidden = chats.base.length > 1; // two turns; a third would not fit
    } else if (type === "look") {
      looks[stage] = data.look;
      const answers = Object.fromEntries(["sft", "ppo"].map((one) => [one, picked(one)]));
      if (stage === data.then) { examine({ answers, looks }); moveToTokens(stage); } else if (looks[data.then]) showTokens();
    }
  };

  worker.onerror = ({ message }) => stop(say("failed", { message }));
  form.addEventListener("submit", (event) => { event.preventDefault(); askNew(); });
  form.elements.prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); askNew(); }
  });
  form.elements.temperature.addEventListener("input", ({ target }) => { byId("degrees").textContent = target.value; });
  byId("again").addEventListener("click", () => {
    form.elements.seed.value = Number(form.elements.seed.value) + Number(form.elements.best.value);
    askNew();
  });
  byId("stop").addEventListener("click", () => stop(say("stopped")));
  reply.addEventListener("submit", (event) => {
    event.preventDefault();
    const content = reply.elements.reply.value.trim();
    if (!content) return;
    if (content.length > room * CHARACTERS_A_TOKEN) { byId("status").textContent = tooLongText(); return; }
    ask(Object.fromEntries(Object.keys(stages).map((stage) => [stage, [
      ...chats[stage], { role: "assistant", content: picked(stage).text }, { role: "user", content }]])), say("working"));
    reply.elements.reply.value = "";
  });

  // A prompt of each use case to begin with: the shortest.
  const examples = new Map();
  for (const prompt of prompts) {
    const shortest = examples.get(prompt.use_case);
    const text = prompt.messages[prompt.messages.length - 1].content;
    if (prompt.use_case && prompt.messages.length === 1 && !(shortest && shortest.length <= text.length)) {
      examples.set(prompt.use_case, text);
    }
  }
  function askThis(text) {
    openTab("try");
    form.elements.prompt.value = text;
    askNew();
  }
  byId("examples").append(...[...examples].map(([use_case, text]) => {
    const button = make("button", { type: "button", title: text, lang: "en" }, text);
    button.setAttribute("aria-label", `${named("use_case", use_case)}: ${text}`);
    button.addEventListener("click", () => askThis(text));
    return make("li", {}, button);
  }));
  byId("own").addEventListener("submit", (event) => {
    event.preventDefault();
    askThis(byId("own").elements.own.value);
  });
  opened.try = () => examine(null);
}
