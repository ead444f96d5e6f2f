"use strict";
const byId = (name) => document.getElementById(name);
const TEXTS = ["checkpoint", "weights", "prompt", "negative_prompt", "sampler", "experts"];
const NUMBERS = ["seed", "guidance", "steps", "capacity", "gamma"];
const CHOICES = {
  threshold: ["the thresholds of training", ""],
  gamma: ["capacity, one threshold", "The first picture of a capacity waits for a calibration, which the run keeps."],
  quantile: ["capacity, a threshold for each expert",
    "The first picture of a capacity waits for a calibration, which the run keeps."],
  interval: ["a threshold of your own", "Experts take the tokens that their predictor puts above it."],
  threshold_count: ["the thresholds' count, by gate score", ""],
  static: ["top K as in training", "Each expert takes the same share of the picture's tokens."],
};
const MOST_EARLIER = 12;
const heatMap = new HeatMap(byId("maps"), byId("where"), byId("legend"));
let model = null, drawing = null, last = null, isFirstCall = true;

function setOptions(select, values, names) {
  select.replaceChildren(...values.map((value) => new Option(names ? names[value][0] : value, value)));
}

function showModel(found) {
  // The user's own numbers stay where they are; only the first model sets them.
  const isFirst = model === null;
  const before = { sampler: byId("sampler").value, experts: byId("experts").value };
  model = found;
  const experts = model.num_experts
    ? `${model.num_experts} experts in ${model.blocks.length} blocks` : "no experts";
  byId("model").textContent = `${model.checkpoint}, step ${model.step.toLocaleString("en")}, ${experts}`;
  byId("weights").value = model.weights;
  byId("prompt-name").textContent = model.num_classes ? `Label, 0 to ${model.num_classes - 1}` : "Prompt";
  byId("negative").hidden = model.num_classes > 0;
  setOptions(byId("sampler"), model.samplers);
  setOptions(byId("experts"), model.choices, CHOICES);
  byId("experts-of-model").hidden = model.choices.length === 0;
  byId("capacity").max = Math.min(model.num_experts - 0.05, 4).toFixed(2);
  if (isFirst) {
    for (const name of ["sampler", "steps", "guidance", "experts", "capacity", "gamma"]) byId(name).value = model[name];
  } else {
    byId("sampler").value = model.samplers.includes(before.sampler) ? before.sampler : model.sampler;
    byId("experts").value = model.choices.includes(before.experts) ? before.experts : model.experts;
  }
  showExperts();
}

function showExperts() {
  const choice = byId("experts").value;
  byId("capacity-label").hidden = choice !== "gamma" && choice !== "quantile";
  byId("gamma-label").hidden = choice !== "interval";
  byId("capacity-value").value = Number(byId("capacity").value).toFixed(2);
  byId("gamma-value").value = Number(byId("gamma").value).toFixed(2);
  byId("experts-note").textContent = choice ? CHOICES[choice][1] : "";
}

function readForm() {
  const form = {};
  for (const name of TEXTS) form[name] = byId(name).value;
  for (const name of NUMBERS) {
    const value = byId(name).value.trim();
    form[name] = value === "" ? null : Number(value);
  }
  if (model?.num_classes) form.negative_prompt = "";
  return form;
}

function fail(text) {
  byId("error").textContent = text;
  byId("error").hidden = false;
  byId("status").textContent = "";
}

function note(text) {
  const line = document.createElement("li");
  line.textContent = text;
  byId("notes").append(line);
  byId("notes").hidden = false;
}

function begin() {
  byId("error").hidden = byId("notes").hidden = true;
  byId("notes").replaceChildren();
  byId("draw").disabled = true;
  byId("stop").disabled = false;
  isFirstCall = true;
}

function take(event) {
  switch (event.kind) {
    case "model": showModel(event); break;
    case "status": byId("status").textContent = event.text; break;
    case "note": note(event.text); break;
    case "call":
      byId("status").textContent = `drawing, t = ${event.time.toFixed(2)}`;
      takeCall(event);
      break;
    case "picture": showPicture(event); break;
    case "error": fail(event.text); break;
  }
}

function takeCall(call) {
  if (isFirstCall) {
    // The last picture's maps stay until there are new ones.
    isFirstCall = false;
    heatMap.clear(model.blocks);
    byId("half").value = "conditional";
    byId("overlay").hidden = true;
    byId("map").hidden = model.blocks.length === 0;
  }
  if (model.blocks.length) heatMap.add(call);
}

function showPicture(found) {
  if (last) keepEarlier(last);
  last = { ...found, prompt: byId("prompt").value, seed: byId("seed").value };
  const picture = byId("picture");
  picture.src = `data:image/png;base64,${found.png}`;
  picture.alt = last.prompt;
  picture.classList.toggle("pixels", found.width < 256);
  const capacity = found.capacity === null ? [] : [["Capacity, experts a token", found.capacity.toFixed(3)]];
  const facts = [
    ...capacity,
    ["Time", `${found.seconds.toFixed(2)} s`],
    ["Operations", found.flops],
    ["Network calls", String(found.calls)],
    ["Size", `${found.width} x ${found.height}`],
    ["Step of training", found.step.toLocaleString("en")],
  ];
  byId("facts").replaceChildren(...facts.flatMap(([name, value]) => {
    const entry = [document.createElement("dt"), document.createElement("dd")];
    [entry[0].textContent, entry[1].textContent] = [name, value];
    return entry;
  }));
  byId("save").href = picture.src;
  byId("save").download = found.name;
  byId("result").hidden = false;
  byId("status").textContent = "done";
}

function keepEarlier(found) {
  const figure = document.createElement("figure"), picture = new Image(), words = document.createElement("figcaption");
  picture.src = `data:image/png;base64,${found.png}`;
  picture.alt = found.prompt;
  if (found.width < 256) picture.className = "pixels";
  const capacity = found.capacity === null ? "" : `capacity ${found.capacity.toFixed(2)}, `;
  words.textContent = `${found.prompt} (seed ${found.seed}): ${capacity}${found.seconds.toFixed(2)} s, ${found.flops}`;
  figure.append(picture, words);
  byId("strip").prepend(figure);
  while (byId("strip").children.length > MOST_EARLIER) byId("strip").lastChild.remove();
  byId("earlier").hidden = false;
}

async function readLines(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    lines.forEach((line) => take(JSON.parse(line)));
  }
}

async function draw(event) {
  event.preventDefault();
  if (drawing) return;
  drawing = new AbortController();
  begin();
  try {
    const headers = { "Content-Type": "application/json" };
    const body = JSON.stringify(readForm());
    const response = await fetch("/draw", { method: "POST", headers, body, signal: drawing.signal });
    if (response.ok) await readLines(response);
    else fail(await response.text());
  } catch (error) {
    if (error.name === "AbortError") byId("status").textContent = "stopped";
    else fail(`the program of this page does not answer (${error.message}); is it still running?`);
  } finally {
    drawing = null;
    byId("draw").disabled = false;
    byId("stop").disabled = true;
  }
}

function pick(place) {
  heatMap.picked = place;
  heatMap.draw();
  const overlay = byId("overlay");
  overlay.hidden = place === null;
  if (place === null) return;
  [overlay.width, overlay.height] = [place.call.columns, place.call.rows];
  overlay.getContext("2d").drawImage(heatMap.pictureOf(place.map, place.call), 0, 0);
}

async function start() {
  byId("form").addEventListener("submit", draw);
  byId("stop").addEventListener("click", () => drawing?.abort());
  for (const name of ["experts", "capacity", "gamma"]) byId(name).addEventListener("input", showExperts);
  byId("half").addEventListener("change", () => { heatMap.half = byId("half").value; pick(null); });
  heatMap.onPick = pick;
  const found = await (await fetch("/start")).json();
  byId("checkpoint").value = found.named;
  byId("checkpoints").replaceChildren(...found.checkpoints.map((path) => new Option(path)));
  showModel(found);
}

start().catch((error) => fail(`the program of this page does not answer (${error.message})`));
