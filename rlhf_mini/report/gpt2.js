// The run's models, alive in the page: byte-level BPE, the forward pass of GPT-2, sampling, scores and log-probabilities.
//
// live.py packs the models; live.js starts this file as a Web Worker and talks to it in messages, which are at the end.
// Nothing here touches the page or the network. Shapes: T tokens at once, D width, V vocabulary, R tokens of a response;
// all arrays are flat, row by row.
"use strict";

// --- text to tokens --------------------------------------------------------------------------------------------------

// As tokenizers' ByteLevel: GPT-2's pattern, with Unicode's white space (JavaScript's \s differs from it).
const PIECES = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gu;

class Tokenizer {
  // vocab: token strings by id; merges: pairs in the order in which they were learned.
  constructor({ vocab, merges, special, template, eos }) {
    this.template = template;
    this.eos = eos;
    this.ids = new Map(vocab.map((token, id) => [token, id]));
    this.ranks = new Map(merges.map(([left, right], rank) => [`${left} ${right}`, rank]));
    this.special = special; // names and ids
    const controls = new Set(Object.values(special));
    // A token string has a printable character for each byte: itself, or one from 256 on (Radford et al. 2019).
    const printable = (byte) => (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
    this.characters = [];
    for (let byte = 0, next = 256; byte < 256; byte++) {
      this.characters.push(String.fromCharCode(printable(byte) ? byte : next++));
    }
    const bytes = new Map(this.characters.map((character, byte) => [character, byte]));
    this.bytes = vocab.map((token, id) => (controls.has(id) ? [] : [...token].map((one) => bytes.get(one))));
  }

  // Tokens of a chat up to where the response begins. Only the template's own special tokens are tokens.
  encodeChat(messages) {
    const { user, assistant, start } = this.template; // each turn: [text before it, text after it]
    return this.encodePieces(messages.map(({ role, content }) => [...(role === "assistant" ? assistant : user), content]), start);
  }

  // What the base reads: it has never seen a chat (BARE_TEMPLATE in rlhf_mini/evaluation/responses.py).
  encodeBare(messages) {
    return this.encode(messages.map(({ content }) => `${content}\n`).join(""));
  }

  // Tokens of a response that comes as text, as others than its model read it.
  encodeResponse(text, ended) {
    const { assistant: [before, after], start } = this.template;
    return this.encodePieces([[before.slice(start.length), ended ? after : "", text]], "");
  }

  // Turns of [template before, template after, content], and what the template writes at the end.
  encodePieces(turns, end) {
    const names = Object.keys(this.special).map((name) => name.replace(/[|\\{}()[\]^$+*?.]/g, "\\$&"));
    const split = new RegExp(`(${names.join("|")})`);
    const pieces = []; // special ids, and texts to encode as one
    const write = (text) => {
      if (typeof pieces[pieces.length - 1] === "string") pieces[pieces.length - 1] += text; else pieces.push(text);
    };
    const writeTemplate = (text) => {
      for (const part of text.split(split)) if (part in this.special) pieces.push(this.special[part]); else write(part);
    };
    for (const [before, after, content] of turns) {
      writeTemplate(before);
      write(content);
      writeTemplate(after);
    }
    writeTemplate(end);
    return pieces.flatMap((piece) => (typeof piece === "string" ? this.encode(piece) : piece));
  }

  // Tokens of a text; a special token that is typed in it stays text.
  encode(text) {
    const ids = [];
    for (const [piece] of text.matchAll(PIECES)) {
      const bytes = new TextEncoder().encode(piece);
      let parts = Array.from(bytes, (byte) => this.characters[byte]);
      while (parts.length > 1) { // merge the pair that was learned first
        let best = Infinity, at = -1;
        for (let i = 0; i + 1 < parts.length; i++) {
          const rank = this.ranks.get(`${parts[i]} ${parts[i + 1]}`) ?? Infinity;
          if (rank < best) [best, at] = [rank, i];
        }
        if (at < 0) break;
        const [left, right] = [parts[at], parts[at + 1]], merged = [];
        for (let i = 0; i < parts.length; i++) {
          if (parts[i] === left && parts[i + 1] === right) { merged.push(left + right); i++; } else merged.push(parts[i]);
        }
        parts = merged;
      }
      for (const part of parts) ids.push(this.ids.get(part));
    }
    return ids;
  }

  // What a single token is called.
  name(id) {
    return Object.keys(this.special).find((name) => this.special[name] === id) ?? this.decode([id]);
  }

  // The text of some tokens. Special tokens have none; a character cut in half is shown as U+FFFD.
  decode(ids) {
    return new TextDecoder("utf-8", { ignoreBOM: true }).decode(Uint8Array.from(ids.flatMap((id) => this.bytes[id])));
  }
}

// --- the model -------------------------------------------------------------------------------------------------------

// y (T, n) = x (T, m) w (m, n) + b (n), w as transformers' Conv1D has it. Each row of w is read once for all T tokens.
function linear(x, w, b, T, m, n) {
  const y = new Float32Array(T * n);
  for (let t = 0; t < T; t++) y.set(b, t * n);
  for (let i = 0; i < m; i++) {
    const row = i * n;
    for (let t = 0; t < T; t++) {
      const factor = x[t * m + i], out = t * n;
      for (let j = 0; j < n; j++) y[out + j] += factor * w[row + j];
    }
  }
  return y;
}

function layerNorm(x, weight, bias, T, D, epsilon) {
  const y = new Float32Array(T * D);
  for (let t = 0; t < T; t++) {
    const at = t * D;
    let mean = 0, variance = 0;
    for (let i = 0; i < D; i++) mean += x[at + i] / D;
    for (let i = 0; i < D; i++) variance += (x[at + i] - mean) ** 2 / D;
    const scale = 1 / Math.sqrt(variance + epsilon);
    for (let i = 0; i < D; i++) y[at + i] = (x[at + i] - mean) * scale * weight[i] + bias[i];
  }
  return y;
}

// The error function, within 1.2e-7 (Abramowitz and Stegun 1964, 7.1.26 in the form of Numerical Recipes' erfc).
function erf(x) {
  const t = 1 / (1 + 0.5 * Math.abs(x));
  const series = -1.26551223 + t * (1.00002368 + t * (0.37409196 + t * (0.09678418 + t * (-0.18628806 + t * (0.27886807
    + t * (-1.13520398 + t * (1.48851587 + t * (-0.82215223 + t * 0.17087277))))))));
  const tail = t * Math.exp(-x * x + series);
  return x < 0 ? tail - 1 : 1 - tail;
}
const ACTIVATIONS = {
  gelu: (x) => 0.5 * x * (1 + erf(x * Math.SQRT1_2)),
  gelu_new: (x) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))),
};
ACTIVATIONS.gelu_pytorch_tanh = ACTIVATIONS.gelu_new;

// Keys and values of the tokens that a model has read.
class Cache {
  constructor({ n_layer, n_embd, n_positions }) {
    this.length = 0;
    this.layers = Array.from({ length: n_layer }, () => (
      { keys: new Float32Array(n_positions * n_embd), values: new Float32Array(n_positions * n_embd) }));
  }

  copy() {
    const other = Object.create(Cache.prototype);
    other.length = this.length;
    other.layers = this.layers.map(({ keys, values }) => ({ keys: keys.slice(), values: values.slice() }));
    return other;
  }
}

class GPT2 {
  constructor(config, tensors) {
    this.config = config;
    this.tensors = tensors;
  }

  // Reads T tokens after those in the cache: the final hidden state of each, (T, D).
  read(ids, cache) {
    const { n_layer, n_embd: D, n_head, layer_norm_epsilon: epsilon, activation_function } = this.config;
    const { tensors } = this, T = ids.length, activation = ACTIVATIONS[activation_function];
    const norm = (x, name) => layerNorm(x, tensors[`${name}.weight`], tensors[`${name}.bias`], T, D, epsilon);
    const map = (x, name, m, n) => linear(x, tensors[`${name}.weight`], tensors[`${name}.bias`], T, m, n);
    const add = (x, y) => { for (let i = 0; i < x.length; i++) x[i] += y[i]; };

    const x = new Float32Array(T * D);
    for (let t = 0; t < T; t++) {
      const token = ids[t] * D, position = (cache.length + t) * D;
      for (let i = 0; i < D; i++) x[t * D + i] = tensors["wte.weight"][token + i] + tensors["wpe.weight"][position + i];
    }
    for (let layer = 0; layer < n_layer; layer++) {
      const name = `h.${layer}`, { keys, values } = cache.layers[layer];
      const qkv = map(norm(x, `${name}.ln_1`), `${name}.attn.c_attn`, D, 3 * D);
      for (let t = 0; t < T; t++) {
        const from = t * 3 * D, to = (cache.length + t) * D;
        keys.set(qkv.subarray(from + D, from + 2 * D), to);
        values.set(qkv.subarray(from + 2 * D, from + 3 * D), to);
      }
      add(x, map(this.attend(qkv, keys, values, cache.length, T, D, n_head), `${name}.attn.c_proj`, D, D));
      const wide = map(norm(x, `${name}.ln_2`), `${name}.mlp.c_fc`, D, this.config.n_inner);
      for (let i = 0; i < wide.length; i++) wide[i] = activation(wide[i]);
      add(x, map(wide, `${name}.mlp.c_proj`, this.config.n_inner, D));
    }
    cache.length += T;
    return norm(x, "ln_f");
  }

  // Causal attention of T queries, the first D of each row of qkv, to all tokens up to their own: (T, D).
  attend(qkv, keys, values, before, T, D, heads) {
    const y = new Float32Array(T * D), width = D / heads, weights = new Float32Array(before + T);
    for (let t = 0; t < T; t++) {
      for (let head = 0; head < heads; head++) {
        const at = head * width, query = t * 3 * D + at, seen = before + t + 1;
        let most = -Infinity, total = 0;
        for (let s = 0; s < seen; s++) {
          let product = 0;
          for (let i = 0; i < width; i++) product += qkv[query + i] * keys[s * D + at + i];
          weights[s] = product / Math.sqrt(width);
          most = Math.max(most, weights[s]);
        }
        for (let s = 0; s < seen; s++) total += weights[s] = Math.exp(weights[s] - most);
        for (let s = 0; s < seen; s++) {
          const weight = weights[s] / total;
          for (let i = 0; i < width; i++) y[t * D + at + i] += weight * values[s * D + at + i];
        }
      }
    }
    return y;
  }

  // Row t of hidden states to the logits of the next token: (V,).
  logits(hidden, t) {
    const D = this.config.n_embd, w = this.tensors["lm_head.weight"] ?? this.tensors["wte.weight"];
    const logits = new Float32Array(w.length / D);
    for (let v = 0; v < logits.length; v++) {
      let sum = 0;
      for (let i = 0; i < D; i++) sum += hidden[t * D + i] * w[v * D + i];
      logits[v] = sum;
    }
    return logits;
  }

  // The scalar head at row t, less the constant that puts demonstrations at 0.
  scalar(hidden, t) {
    const D = this.config.n_embd;
    let sum = 0;
    for (let i = 0; i < D; i++) sum += hidden[t * D + i] * this.tensors["score.weight"][i];
    return sum - this.config.reward_mean;
  }

  // Each response token's distribution, as it was when the token was chosen: R arrays of (V,), in nats.
  logDistributions(prompt, response, temperature) {
    const hidden = this.read([...prompt, ...response], new Cache(this.config));
    return response.map((_, r) => logSoftmax(this.logits(hidden, prompt.length + r - 1), temperature));
  }
}

function logSoftmax(logits, temperature) {
  const most = logits.reduce((a, b) => Math.max(a, b)), scaled = Float64Array.from(logits, (x) => (x - most) / temperature);
  const normaliser = Math.log(scaled.reduce((sum, x) => sum + Math.exp(x), 0));
  return scaled.map((x) => x - normaliser);
}

// Weights as live.py packs them: deflated planes of bytes, lowest first, of zigzag integers; times `step`, plus the
// weights of the model that this one was trained from.
async function unpack({ config, tensors, step, planes, data }, start) {
  const text = atob(data), compressed = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) compressed[i] = text.charCodeAt(i);
  const stream = new Blob([compressed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  const size = bytes.length / planes, unpacked = {};
  let at = 0;
  for (const [name, length, differs] of tensors) { // differs: stored as the difference from `start`
    const of = unpacked[name] = new Float32Array(length), from = differs ? start.tensors[name] : null;
    for (let i = 0; i < length; i++, at++) {
      let zigzag = 0;
      for (let plane = planes - 1; plane >= 0; plane--) zigzag = zigzag * 256 + bytes[plane * size + at];
      of[i] = (zigzag % 2 ? -(zigzag + 1) / 2 : zigzag / 2) * step + (from ? from[i] : 0);
    }
  }
  return new GPT2(config, unpacked);
}

// --- sampling --------------------------------------------------------------------------------------------------------

// Uniform numbers in [0, 1) from a seed (Mulberry32).
function uniforms(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let x = Math.imul(state ^ (state >>> 15), state | 1);
    x ^= x + Math.imul(x ^ (x >>> 7), x | 61);
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32;
  };
}

// A token: the likeliest at temperature 0, otherwise the first whose cumulative probability exceeds u.
function draw(logits, temperature, u) {
  const most = logits.reduce((a, b) => Math.max(a, b));
  if (!temperature) return logits.indexOf(most);
  const weights = Float64Array.from(logits, (x) => Math.exp((x - most) / temperature));
  let left = u() * weights.reduce((a, b) => a + b);
  for (let token = 0; token < weights.length; token++) if ((left -= weights[token]) < 0) return token;
  return logits.indexOf(most); // rounding ate the rest
}

// A prompt that was read: several samples go on from here.
function begin(model, prompt) {
  const cache = new Cache(model.config), hidden = model.read(prompt, cache);
  return { cache, logits: model.logits(hidden, prompt.length - 1) };
}

// Samples a response token by token: yields each id, the closing one included.
function* sample(model, { cache, logits }, { temperature, seed, limit, eos }) {
  const own = cache.copy(), u = uniforms(seed);
  for (let n = 0; n < Math.min(limit, model.config.n_positions - cache.length); n++) {
    const token = draw(logits, temperature, u);
    yield token;
    if (token === eos || n === limit - 1) return;
    logits = model.logits(model.read([token], own), 0);
  }
}

// --- scores ----------------------------------------------------------------------------------------------------------

// The reward model's score: its scalar at the last token, plus `likelihood_coef` times the mean log-probability of the
// response under its reader, the SFT model (rlhf_mini/models/scoring.py, reward_scores).
function score({ rm, sft }, prompt, response) {
  const ids = [...prompt, ...response], hidden = rm.read(ids, new Cache(rm.config));
  const scalar = rm.scalar(hidden, ids.length - 1), coefficient = rm.config.likelihood_coef;
  if (!coefficient) return scalar;
  const chosen = sft.logDistributions(prompt, response, 1).map((distribution, r) => distribution[response[r]]);
  return scalar + coefficient * chosen.reduce((a, b) => a + b) / chosen.length;
}

// What PPO saw in each token (rlhf_mini/evaluation/microscope.py), as the fields of a Look.
function look({ sft, ppo, rm, value }, tokenizer, prompt, response, options) {
  const { temperature, kl_coef, missing_eos_penalty, gamma, gae_lambda, eos } = options, last = response.length - 1;
  const of = ppo.logDistributions(prompt, response, temperature);
  const under = sft.logDistributions(prompt, response, temperature);
  const logprob = response.map((token, r) => of[r][token]), ref_logprob = response.map((token, r) => under[r][token]);
  const shift = logprob.map((one, r) => one - ref_logprob[r]);
  const kl = of.map((distribution, r) => distribution.reduce((sum, p, v) => sum + Math.exp(p) * (p - under[r][v]), 0));
  const hidden = value.read([...prompt, ...response], new Cache(value.config));
  const values = response.map((_, r) => value.scalar(hidden, prompt.length + r - 1));
  const total = score({ rm, sft }, prompt, response);
  const reward = shift.map((one) => -kl_coef * one);
  reward[last] += total - (response[last] === eos ? 0 : missing_eos_penalty);
  const advantage = new Array(response.length);
  for (let r = last, next = 0, after = 0; r >= 0; r--) { // generalised advantage estimation, from the end
    next = reward[r] + gamma * after - values[r] + gamma * gae_lambda * next;
    after = values[r];
    advantage[r] = next;
  }
  const top = under.map((distribution) => distribution.reduce((best, p, v) => (p > distribution[best] ? v : best), 0));
  return {
    score: total, text: response.map((token) => tokenizer.name(token)), logprob, ref_logprob,
    measures: { shift, kl, reward, value: values, advantage },
    ref_top: top.map((token) => tokenizer.name(token)), ref_top_logprob: top.map((token, r) => under[r][token]),
  };
}

// --- messages --------------------------------------------------------------------------------------------------------

// In:  load {tokenizer, options}, model {name, packed}, ask {id, chats, temperature, seed, samples}, stop,
//      look {messages, ids, ...}
// Out: token {id, stage, sample, text}, answer {id, stage, sample, text, ids, ended, score}, too_long {id, tokens, room},
//      done {id, tokens, seconds}, failed {id, message}, and look with all that came with the question
function serve(post) {
  const models = {}, arrived = {}; // promises, and what settles them: a question waits only for the models that it needs
  function promised(name) {
    models[name] ??= new Promise((settle) => { arrived[name] = settle; });
    return models[name];
  }
  let tokenizer, options, latest = 0;

  // Lets messages in, such as stop. A timer would wait longer each time.
  const waiting = [], { port1, port2 } = new MessageChannel();
  port1.onmessage = () => waiting.shift()();
  const pause = () => new Promise((done) => { waiting.push(done); port2.postMessage(0); });

  async function ask({ id, chats, temperature, seed, samples }) {
    latest = id;
    let tokens = 0;
    const started = performance.now();
    const work = []; // one generator a stage and sample; each in turn says a token
    const starting = Object.entries(chats).map(async ([stage, messages]) => {
      const model = await promised(stage);
      const prompt = stage === "base" ? tokenizer.encodeBare(messages) : tokenizer.encodeChat(messages);
      const room = model.config.n_positions - options.limit;
      if (latest !== id) return;
      if (prompt.length > room) {
        latest = 0;
        post({ type: "too_long", id, tokens: prompt.length, room });
        return;
      }
      const read = begin(model, prompt);
      for (let number = 0; number < samples; number++) {
        const settings = { temperature, seed: seed + number, limit: options.limit, eos: tokenizer.eos };
        work.push({ stage, number, messages, ids: [], steps: sample(model, read, settings) });
      }
    });
    let left = starting.length, fault = null;
    for (const one of starting) one.then(() => { left--; }, (found) => { fault = found; });
    while ((left || work.length) && latest === id) {
      if (fault) throw fault;
      for (const one of [...work]) {
        const { value, done } = one.steps.next();
        if (!done) {
          one.ids.push(value);
          tokens++;
          post({ type: "token", id, stage: one.stage, sample: one.number, text: response(one.ids) });
        } else {
          work.splice(work.indexOf(one), 1);
          const [rm, sft] = [await promised("rm"), await promised("sft")];
          if (latest !== id) return;
          const text = response(one.ids), ended = one.ids[one.ids.length - 1] === tokenizer.eos;
          const read = one.stage === "base" ? tokenizer.encodeResponse(text, ended) : one.ids;
          const prompt = tokenizer.encodeChat(one.messages);
          const fits = read.length && prompt.length + read.length <= rm.config.n_positions;
          post({
            type: "answer", id, stage: one.stage, sample: one.number, text, ids: one.ids, ended,
            score: fits ? score({ rm, sft }, prompt, read) : null,
          });
        }
      }
      await pause();
    }
    if (latest === id) post({ type: "done", id, tokens, seconds: (performance.now() - started) / 1000 });
  }

  // Without the space with which the template begins a turn.
  const response = (ids) => tokenizer.decode(ids).replace(/^ /, "");

  async function examine({ messages, ids, ...asked }) {
    const [sft, ppo, rm, value] = await Promise.all(["sft", "ppo", "rm", "value"].map(promised));
    post({ ...asked, look: look({ sft, ppo, rm, value }, tokenizer, tokenizer.encodeChat(messages), ids, options) });
  }

  const failed = (fault) => post({ type: "failed", id: latest, message: String(fault) });
  return (message) => {
    if (message.type === "load") {
      tokenizer = new Tokenizer(message.tokenizer);
      options = { ...message.options, eos: tokenizer.eos };
    } else if (message.type === "model") {
      const { name, packed } = message;
      promised(name).catch(() => {}); // who waits for it is told
      arrived[name](packed.start ? promised(packed.start).then((start) => unpack(packed, start)) : unpack(packed));
    } else if (message.type === "ask") ask(message).catch(failed);
    else if (message.type === "stop") latest = 0;
    else if (message.type === "look") examine(message).catch(failed);
  };
}

if (typeof WorkerGlobalScope !== "undefined") {
  const receive = serve((message) => postMessage(message));
  onmessage = ({ data }) => receive(data);
}
