// The phone: join, rank by tapping in order, vote. What the server has not confirmed stays on the screen and is sent again.
"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const texts = JSON.parse(byId("texts").textContent);
  const say = (key, values = {}) => texts[key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
  const RETRY = 2000, POLL = 3000; // milliseconds
  let task = null; // what the server asked for last
  let places = []; // [[index, ...], ...]: indices of the responses by place, equal ones together
  let busy = false;

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
        byId("fault").textContent = found.error ?? "";
        if (response.status !== 503) return { status: response.status, ...found };
      } catch {
        byId("fault").textContent = say("offline");
      }
      await new Promise((done) => setTimeout(done, RETRY));
    }
  }

  async function next() {
    const found = await ask("next");
    if (found.join) { byId("join").hidden = false; byId("rank").hidden = true; return; }
    byId("join").hidden = true;
    const same = task && found.item === task.item && found.duel === task.duel && !found.wait;
    byId("wait").hidden = !found.wait;
    byId("wait").textContent = found.wait ?? "";
    byId("rank").hidden = Boolean(found.wait) || found.error !== undefined;
    if (found.wait) { task = null; setTimeout(next, POLL); return; }
    if (found.error !== undefined) { setTimeout(next, RETRY); return; }
    if (same) return;
    task = found;
    places = [];
    byId("tie").setAttribute("aria-pressed", "false");
    const voting = found.duel !== undefined;
    byId("how").hidden = byId("for-ranks").hidden = byId("send").hidden = voting;
    byId("how-vote").hidden = byId("neither").hidden = !voting;
    byId("progress").textContent = voting ? "" : say("progress", { done: found.done + 1, goal: Math.max(found.goal, found.done + 1) });
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
    if (busy) return;
    busy = true;
    byId("send").disabled = true;
    const found = await ask(path, body);
    busy = false;
    if (found.status !== 413) await next();
    if (task && !byId("rank").hidden) show();
  }
  const vote = (choice) => send({ duel: task.duel, choice }, "vote");
  const label = (kind, of_ranks) => send({ item: task.item, kind, ranks: of_ranks });

  byId("join").addEventListener("submit", async (event) => {
    event.preventDefault();
    const found = await ask("join", { nickname: byId("nickname").value });
    if (found.ok) next();
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
    if (!task || byId("rank").hidden || event.target.matches("input") || event.ctrlKey || event.metaKey || event.altKey) return;
    const index = Number(event.key) - 1;
    if (index >= 0 && index < task.responses.length) byId("responses").children[index].firstChild.click();
    else if (event.key === "=") byId("tie").click();
    else if (event.key === "Backspace") byId("undo").click();
    else return;
    event.preventDefault();
  });
  // A phone that slept, or another tab that went on: look again.
  document.addEventListener("visibilitychange", () => { if (!document.hidden && byId("join").hidden && !busy) next(); });
  setInterval(() => { if (!document.hidden && byId("join").hidden && !busy && task && !places.length) next(); }, 5 * POLL);

  next();
})();
