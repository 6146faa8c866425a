// The page of `python -m training app`: pictures chosen or dropped -> POST /sounds -> a card for each, with players.
// What the server says is put in as text, never as markup.
"use strict";
const $ = id => document.getElementById(id);
const form = $("form");
const maxBytes = Number(form.dataset.maxBytes), maxSounds = Number(form.dataset.maxSounds);
const PICTURE = /\.(jpe?g|png|webp|gif|bmp|tiff?|avif|hei[cf]|jp2|p[bgpn]m)$/i;
const MAX_SHOWN = 24;  // small pictures of what is chosen
let chosen = [];
let running = null;

function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function say(text, isBad = false) {
  $("status").textContent = text;
  $("status").className = isBad ? "bad" : "";
}

// --- Choosing -------------------------------------------------------------------------------------------------------

function choose(files) {
  for (const picture of $("chosen").children) URL.revokeObjectURL(picture.src);
  chosen = files;
  $("chosen").replaceChildren(...files.slice(0, MAX_SHOWN).map(file =>
    make("img", {src: URL.createObjectURL(file), alt: file.name})));
  $("count").textContent = files.length === 1 ? files[0].name : `${files.length} pictures`;
  say("");
}

// of a folder, what is no picture by its name is no mistake
const picturesOf = files => [...files].filter(file => PICTURE.test(file.name))
  .sort((a, b) => (a.webkitRelativePath || a.name).localeCompare(b.webkitRelativePath || b.name));

async function filesBelow(entry) {
  if (entry.isFile) return [await new Promise((found, failed) => entry.file(found, failed))];
  const reader = entry.createReader(), all = [];
  for (;;) {  // a reader gives a hundred at a time
    const some = await new Promise((found, failed) => reader.readEntries(found, failed));
    if (!some.length) return (await Promise.all(all.map(filesBelow))).flat();
    all.push(...some);
  }
}

async function dropped(transfer) {
  const entries = [...transfer.items].map(item => item.webkitGetAsEntry && item.webkitGetAsEntry()).filter(Boolean);
  if (!entries.some(entry => entry.isDirectory)) return [...transfer.files];
  return picturesOf((await Promise.all(entries.map(filesBelow))).flat());
}

$("files").onchange = event => choose([...event.target.files]);
$("folder").onchange = event => choose(picturesOf(event.target.files));
$("drop").ondragover = event => { event.preventDefault(); $("drop").classList.add("over"); };
$("drop").ondragleave = () => $("drop").classList.remove("over");
$("drop").ondrop = async event => {
  event.preventDefault();
  $("drop").classList.remove("over");
  choose(await dropped(event.dataTransfer));
};

// --- Results --------------------------------------------------------------------------------------------------------

function bytesOf(base64, type) {
  return new Blob([Uint8Array.from(atob(base64), letter => letter.charCodeAt(0))], {type});
}

function addCard(file, settings) {
  return make("section", {className: "card"},
    make("img", {src: URL.createObjectURL(file), alt: file.name}),
    make("div", {}, make("h2", {textContent: file.name}), make("div", {className: "soft", textContent: settings}),
      make("div", {className: "takes"})));
}

function showTake(card, file, event, seed) {
  const url = URL.createObjectURL(bytesOf(event.wav, "audio/wav"));
  const title = `take ${event.take}, seed ${seed}`;
  const stem = file.name.replace(/\.[^.]*$/, "");
  const name = event.take === 1 ? `${stem}.wav` : `${stem}.take${event.take}.wav`;
  const player = make("audio", {controls: true, src: url});
  player.setAttribute("aria-label", `${file.name}, ${title}`);
  card.querySelector(".takes").append(make("figure", {},
    make("img", {src: URL.createObjectURL(bytesOf(event.spectrogram, "image/png")), alt: `spectrogram of ${title}`}),
    player,
    make("figcaption", {}, `${title} · ${event.seconds.toFixed(1)} s · `, make("a", {href: url, download: name, textContent: "wav"}))));
}

function showError(card, text) {
  card.lastChild.append(make("p", {className: "bad", textContent: `no sound: ${text}`}));
}

$("clear").onclick = () => {
  for (const one of $("results").querySelectorAll("img, audio")) URL.revokeObjectURL(one.src);
  $("results").replaceChildren();
  $("clear").hidden = true;
  say("");
};

// --- Making ---------------------------------------------------------------------------------------------------------

// a folder of any size goes in requests that the server takes
function* requestsOf(files, takes) {
  let request = [], size = 0;
  for (const file of files) {
    if (request.length && (size + file.size > maxBytes || (request.length + 1) * takes > maxSounds)) {
      yield request;
      request = [];
      size = 0;
    }
    request.push(file);
    size += file.size;
  }
  yield request;
}

async function* linesOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const {value, done} = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) yield JSON.parse(line);
  }
}

async function ask(files, settings, progress) {
  const data = new FormData();
  for (const [name, value] of Object.entries(settings)) data.append(name, value);
  for (const file of files) data.append("pictures", file);
  const answer = await fetch("/sounds", {method: "POST", body: data, signal: running.signal});
  if (!answer.ok) throw new Error((await answer.json()).error);
  const cards = new Map();
  let isDone = false;
  for await (const event of linesOf(answer.body)) {
    if (event.waiting) say(`${event.waiting} before you: waiting`);
    if (event.done) isDone = true;
    if (event.picture === undefined) continue;
    const file = files[event.picture];
    if (!cards.has(file)) {
      cards.set(file, addCard(file, progress.text));
      $("results").insertBefore(cards.get(file), progress.before);
    }
    if (event.error) {
      showError(cards.get(file), event.error);
      progress.errors += 1;
    } else {
      showTake(cards.get(file), file, event, settings.seed);
      progress.made += 1;
    }
    say(`${progress.made} of ${progress.total} sounds`);
  }
  if (!isDone) throw new Error("the answer broke off; the server's log says why");
}

function check(settings) {
  if (!chosen.length) return "choose a picture first";
  const large = chosen.find(file => file.size > maxBytes);
  if (large) return `${large.name}: more than ${maxBytes / 1e6} MB; give a smaller one`;
  return Number(settings.takes) > maxSounds ? `takes: at most ${maxSounds}` : "";
}

form.onsubmit = async event => {
  event.preventDefault();
  if (running) return;
  const settings = Object.fromEntries(new FormData(form));
  const problem = check(settings);
  if (problem) return say(problem, true);
  const text = Object.entries(settings).filter(([name, value]) => name !== "takes" && value)
    .map(([name, value]) => `${name} ${value}`).join(" · ");
  // the newest on top, in the order of the pictures
  const progress = {made: 0, errors: 0, total: chosen.length * settings.takes, text, before: $("results").firstChild};
  running = new AbortController();
  $("go").disabled = true;
  $("stop").hidden = $("clear").hidden = false;
  say("making sounds …");
  try {
    for (const files of requestsOf(chosen, Number(settings.takes))) await ask(files, settings, progress);
    const left = progress.errors ? `; ${progress.errors} of ${chosen.length} pictures gave none` : "";
    say(`${progress.made} of ${progress.total} sounds${left}`, Boolean(progress.errors));
  } catch (error) {
    if (error.name === "AbortError") say(`stopped after ${progress.made} of ${progress.total} sounds`);
    else say(error.name === "TypeError" ? "the server cannot be reached; does it still run?" : error.message, true);
  } finally {
    running = null;
    $("go").disabled = false;
    $("stop").hidden = true;
    $("clear").hidden = !$("results").children.length;
  }
};
$("stop").onclick = () => running && running.abort();
$("dice").onclick = () => { form.elements.seed.value = Math.floor(Math.random() * 1e6); };
