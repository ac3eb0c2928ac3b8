// The phone: join, rank by tapping in order, vote. What the server has not confirmed stays on the screen and is sent again.
"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const texts = JSON.parse(byId("texts").textContent);
  const say = (key, values = {}) => texts[key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
  const RETRY = 2000, POLL = 3000, TOO_FAST = 400; // milliseconds
  let task = null; // what the server asked for last
  let places = []; // [[index, ...], ...]: indices of the responses by place, equal ones together
  let busy = false;
  let since = 0; // when the task was shown, in milliseconds

  function make(tag, properties, ...children) {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  }

  // Asks until there is an answer: a phone loses its network, a server is started again.
  async function ask(path, body) {
    for (;;) {
      try {
        const response = await fetch(path, body && {
          method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
        });
        const found = await response.json();
        if (response.status !== 503) return { status: response.status, ...found };
        byId("fault").textContent = found.error;
      } catch {
        byId("fault").textContent = say("offline");
      }
      await new Promise((done) => setTimeout(done, RETRY));
      byId("fault").textContent = "";
    }
  }

  // Asks what is to be done, shows it, and plans the next look. There is one look at a time; who wants one meanwhile
  // gets a second answer, as the first may be from before a join or a label.
  let looking = null, again = false, timer = 0;
  function next() {
    again = looking !== null;
    looking ??= look().finally(() => { looking = null; });
    return looking;
  }
  async function look() {
    clearTimeout(timer);
    let found;
    do {
      again = false;
      found = await ask("next");
    } while (again);
    follow(found);
    timer = setTimeout(lookAgain, found.prompt ? 5 * POLL : POLL);
  }
  function lookAgain() {
    const idle = !document.hidden && !busy && !places.length && byId("join").hidden;
    if (idle) next(); else timer = setTimeout(lookAgain, POLL);
  }
  function follow(found) {
    byId("join").hidden = !found.join;
    byId("wait").hidden = !found.wait;
    byId("wait").textContent = found.wait ?? "";
    byId("rank").hidden = !found.prompt;
    if (found.error) byId("fault").textContent = found.error;
    if (!found.prompt) { task = null; places = []; return; }
    if (task && found.item === task.item && found.duel === task.duel) return;
    task = found;
    places = [];
    since = Date.now();
    byId("tie").setAttribute("aria-pressed", "false");
    const voting = found.duel !== undefined;
    byId("how").hidden = byId("for-ranks").hidden = byId("send").hidden = voting;
    byId("how-vote").hidden = byId("neither").hidden = !voting;
    byId("progress").textContent = voting || found.done < found.goal
      ? say("progress", { done: found.done + 1, goal: found.goal }) : say("enough", { done: found.done });
    byId("prompt").replaceChildren(...found.prompt.map(({ role, content }) => make("p", {}, make("b", {}, `${role}: `), content)));
    show();
    scrollTo(0, 0);
  }

  const placeOf = (index) => places.findIndex((place) => place.includes(index));
  // 1 = best; after two that share rank 1 comes rank 3.
  function ranks() {
    let rank = 1;
    const found = [];
    for (const place of places) {
      for (const index of place) found[index] = rank;
      rank += place.length;
    }
    return found;
  }

  function show() {
    const voting = task.duel !== undefined, found = ranks();
    byId("responses").replaceChildren(...task.responses.map((text, index) => {
      const chosen = placeOf(index) >= 0;
      const button = make("button", { type: "button", className: chosen ? "chosen" : "" },
        make("span", { className: "place" }, voting ? "" : chosen ? String(found[index]) : "·"), make("span", {}, text));
      button.setAttribute("aria-label", voting ? text : say(chosen ? "place" : "unplaced", { text, rank: found[index] ?? "" }));
      button.addEventListener("click", () => (voting ? vote(index) : tap(index)));
      return make("li", {}, button);
    }));
    byId("undo").disabled = !places.length;
    byId("tie").disabled = !places.length;
    byId("send").disabled = busy || places.flat().length < task.responses.length;
  }
  function tap(index) {
    if (placeOf(index) >= 0) { // take it and all after it back
      places = places.slice(0, placeOf(index));
    } else if (byId("tie").getAttribute("aria-pressed") === "true" && places.length) {
      places[places.length - 1].push(index);
      byId("tie").setAttribute("aria-pressed", "false");
    } else places.push([index]);
    show();
    byId("responses").children[index].firstChild.focus({ preventScroll: true });
  }

  async function send(body, path = "label") {
    if (busy || Date.now() - since < TOO_FAST) return; // a double tap is not meant for the next prompt
    busy = true;
    byId("fault").textContent = "";
    show();
    const { error } = await ask(path, body);
    await next();
    busy = false;
    if (task) show();
    if (error) byId("fault").textContent = error;
  }
  const CHOICES = ["first", "second"];
  const vote = (choice) => send({ duel: task.duel, choice: CHOICES[choice] ?? "neither" }, "vote");
  const label = (kind, of_ranks) => send({ item: task.item, kind, ranks: of_ranks });

  // Made up here, so that a join whose answer was lost can be sent again.
  const token = Array.from(crypto.getRandomValues(new Uint8Array(24)), (byte) => byte.toString(16).padStart(2, "0")).join("");
  byId("join").addEventListener("submit", async (event) => {
    event.preventDefault();
    byId("fault").textContent = "";
    const { error } = await ask("join", { nickname: byId("nickname").value, token });
    if (error) byId("fault").textContent = error; else next();
  });
  byId("tie").addEventListener("click", () => {
    const pressed = byId("tie").getAttribute("aria-pressed") === "true";
    byId("tie").setAttribute("aria-pressed", String(!pressed));
  });
  byId("undo").addEventListener("click", () => {
    const last = places[places.length - 1];
    if (last.length > 1) last.pop(); else places.pop();
    show();
  });
  byId("bad").addEventListener("click", () => label("all_bad", task.responses.map(() => 1)));
  byId("skip").addEventListener("click", () => label("skipped", []));
  byId("send").addEventListener("click", () => label("ranked", ranks()));
  byId("neither").addEventListener("click", () => vote(null));
  document.addEventListener("keydown", (event) => {
    if (!task || byId("rank").hidden || event.target.matches("input") || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
    const index = Number(event.key) - 1;
    if (index >= 0 && index < task.responses.length) byId("responses").children[index].firstChild.click();
    else if (event.key === "=") byId("tie").click();
    else if (event.key === "Backspace") byId("undo").click();
    else return;
    event.preventDefault();
  });
  // A phone that slept looks again.
  document.addEventListener("visibilitychange", () => { if (!document.hidden && !busy && byId("join").hidden) next(); });

  next();
})();
