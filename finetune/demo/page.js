"use strict";
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const live = !("answers" in data), hides = data.kind === "fill_mask";
const LINE = 28, FAINTEST = 2, ENGINE = "engine/gradio_api/call";
const state = { texts: null, example: null, hidden: new Set(), attention: null, unit: null };
const by = (id) => document.getElementById(id);
const percent = (share) => `${(100 * share).toFixed(1)}%`;

/** Return an element; a child that is a string is shown as it is, whatever it holds. */
function make(name, attributes, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function say(place, text, isError) {
  by(place).textContent = text;
  by(place).classList.toggle("error", Boolean(isError));
}

// ---- asking

async function reach(address, request) {
  let reply;
  try {
    reply = await fetch(address, request);
  } catch {
    throw new Error("the server of this page does not answer: start it again");
  }
  if (reply.status === 503) throw new Error("too many wait for this model: try again in a moment");
  if (!reply.ok) throw new Error(await reply.text());
  return reply;
}

/** Call a function of the server; `heard` gets each of its answers, and the last one is returned. */
async function call(name, given, heard = () => {}) {
  const body = JSON.stringify({ data: given });
  const sent = await reach(`${ENGINE}/${name}`, { method: "POST", headers: { "Content-Type": "application/json" }, body });
  const { event_id: key } = await sent.json();
  const events = (await reach(`${ENGINE}/${name}/${key}`)).body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", last = null;
  for (;;) {
    const { value, done } = await events.read();
    if (done) throw new Error("the server of this page has stopped: start it again");
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const [event, line] = part.split("\n").map((text) => text.slice(text.indexOf(": ") + 2));
      if (event === "error") throw new Error("the model could not answer: the terminal of the server says why");
      const answer = event === "heartbeat" ? null : JSON.parse(line)?.[0];
      if (answer?.error) throw new Error(answer.error);
      if (answer) heard(last = answer);
      if (event === "complete") return last;
    }
  }
}

async function answerTo({ texts, example, hidden }) {
  const chosen = [...hidden].sort((a, b) => a - b);
  if (!live) return data.answers[example][chosen.join()];
  return call(data.kind, hides ? [texts[0], chosen] : [texts]);
}

let asking = false, changed = false;

/** Ask for the answer to the state; what changes meanwhile is asked for afterwards, and only the newest is shown. */
async function ask() {
  changed = true;
  if (asking) return;
  asking = true;
  by("answer").classList.add("old");
  while (changed) {
    changed = false;
    try {
      const answer = await answerTo(state);
      if (changed) continue;
      show(answer);
      say("message", "");
    } catch (error) {
      if (!changed) say("message", error.message, true);
    }
  }
  asking = false;
  by("answer").classList.remove("old");
}

function start(texts, example) {
  Object.assign(state, { texts, example, hidden: new Set(), unit: null });
  ask();
}

// ---- showing

function show(answer) {
  by("answer").hidden = false;
  (hides ? showSentence : showContributions)(answer.words);
  if (hides) showCandidates(answer.words);
  else showClasses(answer);
  state.attention = answer.attention;
  if (state.unit >= (answer.attention?.labels.length ?? 0)) state.unit = null;
  showAttention();
}

function bars(list, items, largest, same) {
  list.replaceChildren(...items.map(({ name, probability }) => {
    const filled = make("span", {});
    filled.style.width = `${100 * probability / largest}%`;
    const row = make("li", {}, make("span", {}, name), make("span", { class: "bar" }, filled),
      make("span", { class: "number" }, percent(probability)));
    row.classList.toggle("same", name === same);
    return row;
  }));
}

function showSentence(words) {
  const focused = [...by("words").querySelectorAll("button")].indexOf(document.activeElement);
  const buttons = words.map((word, index) => {
    const told = word.typed ? "hidden word" : word.hidden ? `${word.text}, hidden` : word.text;
    const button = make("button", { type: "button", "aria-pressed": word.hidden, "aria-label": told },
      word.hidden ? "[MASK]" : word.text);
    button.disabled = word.typed;
    if (word.hidden && !word.typed) button.title = word.text;
    button.addEventListener("click", () => toggle(index, button));
    return button;
  });
  by("words").replaceChildren(...words.flatMap((word, index) => (word.space ? [" ", buttons[index]] : [buttons[index]])));
  buttons[focused]?.focus();
}

function toggle(index, button) {
  const wasHidden = state.hidden.has(index);
  if (!live) state.hidden.clear();
  if (wasHidden) state.hidden.delete(index);
  else state.hidden.add(index);
  button.setAttribute("aria-pressed", !wasHidden);
  ask();
}

function showCandidates(words) {
  const hidden = words.filter((word) => word.guesses);
  by("candidates-hint").textContent = hidden.length
    ? "One token for each hidden word; bars are relative to the first."
    : "No word is hidden: click one, or press Enter on it.";
  by("guesses").replaceChildren(...hidden.flatMap((word, number) => {
    const list = make("ol", { class: "bars" });
    bars(list, word.guesses, word.guesses[0].probability || 1, word.typed ? null : word.text);
    return [make("h3", {}, word.typed ? `Hidden word ${number + 1}` : `Instead of “${word.text}”`), list];
  }));
}

function showClasses({ classes, truncated }) {
  by("class-title").textContent = `Predicted class: ${classes[0].name}`;
  bars(by("classes").querySelector("ol"), classes, 1, classes[0].name);
  by("words-hint").textContent = `The probability of “${classes[0].name}” less that of the text without the word: ` +
    `blue words speak for the class, orange ones against it.${truncated ? " The model reads only the text's beginning." : ""}`;
}

function showContributions(words) {
  const largest = Math.max(.02, ...words.map((word) => Math.abs(word.contribution ?? 0)));
  by("words").replaceChildren(...words.flatMap((word, index) => {
    const known = word.contribution !== null, shown = known ? word.contribution.toFixed(2).replace(/^-(0\.00)$/, "$1") : "–";
    const box = make("span", { class: "worth" }, word.text, make("small", {}, known && Number(shown) > 0 ? `+${shown}` : shown));
    const side = word.contribution > 0 ? "--for" : "--against";
    box.style.background = `rgba(var(${side}), ${.55 * Math.abs(word.contribution ?? 0) / largest})`;
    const first = index > 0 && word.part !== words[index - 1].part;
    return [first ? make("br", {}) : word.space ? " " : "", box];
  }));
}

// ---- attention

function showAttention() {
  const { attention } = state;
  for (const id of ["heads", "lines"]) by(id).hidden = !attention;
  by("attention-hint").textContent = attention
    ? "Each word on the left attends to the words on the right; choose one to see its weights."
    : "The text is too long for its attention to be shown.";
  if (!attention) return;
  const { labels, weights } = attention;
  choices("layer", weights.map((_, index) => [index, `${index + 1} of ${weights.length}`]));
  choices("head", [["mean", "mean of all"], ...weights[0].map((_, index) => [index, `${index + 1} of ${weights[0].length}`])]);
  const focused = [...by("from").children].indexOf(document.activeElement);
  by("from").replaceChildren(...labels.map((label, index) => {
    const button = make("button", { type: "button", title: label, "aria-pressed": state.unit === index }, label);
    button.addEventListener("click", () => {
      state.unit = state.unit === index ? null : index;
      for (const [other, element] of [...by("from").children].entries()) {
        element.setAttribute("aria-pressed", state.unit === other);
      }
      drawLines(state.unit);
    });
    button.addEventListener("mouseenter", () => drawLines(index));
    button.addEventListener("mouseleave", () => drawLines(state.unit));
    return button;
  }));
  by("from").children[focused]?.focus();
  drawLines(state.unit);
}

/** Fill a list of choices, and keep the choice where it is still there. */
function choices(id, options) {
  const before = by(id).value;
  by(id).replaceChildren(...options.map(([value, text]) => make("option", { value }, text)));
  if (options.some(([value]) => String(value) === before)) by(id).value = before;
}

function chosenWeights() {
  const layer = state.attention.weights[Number(by("layer").value)], head = by("head").value;
  if (head !== "mean") return layer[Number(head)];
  return layer[0].map((row, from) => row.map((_, to) => layer.reduce((sum, one) => sum + one[from][to], 0) / layer.length));
}

/** Draw the lines from one unit, or from all if it is null. */
function drawLines(unit) {
  const { labels } = state.attention, weights = chosenWeights(), svg = by("drawn");
  const height = LINE * labels.length;
  svg.setAttribute("viewBox", `0 0 100 ${height}`);
  svg.style.height = `${height}px`;
  const from = unit === null ? "every word" : labels[unit];
  svg.setAttribute("aria-label", `Attention of ${from} in layer ${Number(by("layer").value) + 1}, head ${by("head").selectedOptions[0].text}`);
  const lines = [], strongest = Math.max(...(unit === null ? weights.flat() : weights[unit]));
  const contrast = unit === null ? 2 : 1; // else the many faint lines of a long text would hide the strong ones
  weights.forEach((row, start) => row.forEach((weight, end) => {
    if ((unit !== null && unit !== start) || weight < FAINTEST) return;
    const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
    const place = { x1: 0, y1: LINE * (start + .5), x2: 100, y2: LINE * (end + .5), "stroke-opacity": (weight / strongest) ** contrast };
    for (const [key, value] of Object.entries(place)) line.setAttribute(key, value);
    lines.push(line);
  }));
  svg.replaceChildren(...lines);
  by("to").replaceChildren(...labels.map((label, end) => {
    const name = make("span", { title: label });
    if (unit !== null) {
      const weight = Math.round(weights[unit][end]);
      name.classList.toggle("weak", weight < FAINTEST);
      name.append(make("small", {}, `${weight}%`));
    }
    name.append(label);
    return name;
  }));
}

// ---- a table

async function classifyTable(event) {
  event.preventDefault();
  const file = by("file").files[0], progress = by("progress");
  by("download").hidden = true;
  if (!file) return say("table-message", "no table is chosen", true);
  const button = by("table").querySelector("button");
  button.disabled = true;
  progress.hidden = false;
  progress.removeAttribute("value");
  say("table-message", "waiting for the model");
  try {
    const sent = await reach(`table?name=${encodeURIComponent(file.name)}`, { method: "POST", body: file });
    const key = await sent.text();
    const last = await call("table", [key], ({ done, total, remarks }) => {
      progress.max = total;
      progress.value = done;
      say("table-message", remarks || `${done.toLocaleString("en")} of ${total.toLocaleString("en")} rows`);
    });
    if (!last.remarks) throw new Error("the table was not classified to its end");
    by("download").href = `table/${key}`;
    by("download").hidden = false;
  } catch (error) {
    say("table-message", error.message, true);
  } finally {
    button.disabled = false;
    progress.hidden = true;
  }
}

// ---- the page

function begin() {
  by("title").textContent = hides ? "Hide a word, and see what fits" : "Classify a text";
  by("name").textContent = `${hides ? "Masked language model" : "Classifier"}: ${data.name}`;
  by("words-title").textContent = hides ? "The sentence" : "What each word contributed";
  by("words-hint").textContent = hides ? `Click a word to hide it, and again to show it.${live ? "" : " One at a time."}` : "";
  by("candidates").hidden = !hides;
  by("classes").hidden = hides;
  by("form").hidden = !live;
  by("submit").textContent = hides ? "Show" : "Classify";
  const fields = data.columns.map((column, index) => {
    const field = make("textarea", { id: `field-${index}`, rows: 2, spellcheck: "false" });
    field.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      by("form").requestSubmit();
    });
    by("fields").append(make("label", { for: field.id }, column[0].toUpperCase() + column.slice(1)), field);
    return field;
  });
  by("form").addEventListener("submit", (event) => {
    event.preventDefault();
    start(fields.map((field) => field.value), null);
  });
  by("examples").replaceChildren(...data.examples.map((texts, example) => {
    const button = make("button", { type: "button" }, texts.join(" / "));
    button.addEventListener("click", () => {
      fields.forEach((field, index) => { field.value = texts[index]; });
      start(texts, example);
    });
    return button;
  }));
  for (const id of ["layer", "head"]) by(id).addEventListener("change", () => drawLines(state.unit));
  by("table").hidden = hides || !live;
  by("table").addEventListener("submit", classifyTable);
  by("table-hint").textContent = `A .csv, .tsv, .jsonl, .json, .parquet or .xlsx file with the column ${data.columns.join(" and the column ")}, up to 10 MB.`;
  by("examples").querySelector("button")?.click();
}

begin();
})();
