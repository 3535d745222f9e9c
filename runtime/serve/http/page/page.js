// Everything is asked of the server that sent this page, relative to it: it may stand behind a prefix.
const $ = (id) => document.getElementById(id);
const [SEARCHED, SHOWN] = [12, 60]; // beyond so many domains there is a search field; so many are listed
const EVERY = 2000; // milliseconds between looks at the server
const COLOURS = 7; // and one more for all other domains
const number = new Intl.NumberFormat("en");
const counted = (count, what) => `${number.format(count)} ${what}${count === 1 ? "" : /[sh]$/.test(what) ? "es" : "s"}`;
const percent = (share) => (share > 0 && share < 0.0005 ? "< 0.1 %" : `${(100 * share).toFixed(1)} %`);
const time = (ms) => `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;
const element = (kind, className, textContent = "") =>
  Object.assign(document.createElement(kind), { className, textContent });

function drawn(kind, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", kind);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

// --- asking, with a key where the server wants one ---------------------------------------------
let key = sessionStorage.getItem("prunion-key") ?? "";
let entered = null; // a promise, while the page waits for a key

async function ask(path, options = {}) {
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  const answer = await fetch(path, { ...options, headers, cache: "no-store" });
  if (answer.status === 401) {
    await (entered ??= newKey());
    return ask(path, options);
  }
  const value = await answer.json();
  if (!answer.ok) throw new Error(value.error ?? `The server answered ${answer.status}.`);
  return value;
}

async function newKey() {
  $("key-form").hidden = false;
  $("key-wrong").hidden = !key;
  $("key").select();
  await new Promise((resolve) => ($("key-form").onsubmit = (event) => resolve(event.preventDefault())));
  sessionStorage.setItem("prunion-key", (key = $("key").value.trim()));
  $("key-form").hidden = true;
  entered = null;
}

function problem(error) {
  const text = error instanceof TypeError ? "The server does not answer." : (error.message ?? error);
  Object.assign($("problem"), { textContent: text, hidden: !text });
}

// --- domains -----------------------------------------------------------------------------------
let [names, domain] = [[], ""];

async function start() {
  const found = await ask("v1/domains");
  names = found.domains;
  document.title = `${($("bundle").textContent = found.bundle)} – prunion`;
  document.querySelector("footer").hidden = Boolean(key); // a link sends no key
  $("about").textContent = `${counted(names.length, "domain")}, one network`;
  $("search").hidden = names.length <= SEARCHED;
  choose(names.find((name) => `#${encodeURIComponent(name)}` === location.hash) ?? names[0]);
  watch();
}

function matches() {
  const words = $("search").value.toLowerCase().split(/\s+/);
  return names.filter((name) => words.every((word) => name.toLowerCase().includes(word)));
}

function list() {
  const [found, shown] = [matches(), matches().slice(0, SHOWN)];
  if (!shown.includes(domain)) shown.unshift(domain); // or what is chosen would be out of sight
  const choices = shown.map((name) => {
    const button = Object.assign(element("input", "unseen"), { type: "radio", name: "domain", value: name });
    button.checked = name === domain;
    const label = element("label", "");
    label.append(button, name);
    return label;
  });
  $("domains").replaceChildren(...choices);
  if ($("search").hidden) return;
  const first = found.length > SHOWN ? `; the first ${SHOWN} are shown` : "";
  $("found").textContent = `${number.format(found.length)} of ${counted(names.length, "domain")}${first}`;
}

async function choose(name) {
  domain = name;
  if (![...$("domains").querySelectorAll("input")].some((x) => x.checked && x.value === name)) list();
  history.replaceState(null, "", `#${encodeURIComponent(name)}`);
  $("classes").textContent = "";
  if (image) await answer(); // first, for it is what is waited for
  const { classes } = await ask(`v1/domains/${encodeURIComponent(name)}`);
  if (name !== domain) return;
  const rest = classes.length > 8 ? `, and ${number.format(classes.length - 8)} more` : "";
  $("classes").textContent = `${counted(classes.length, "class")}: ${classes.slice(0, 8).join(", ")}${rest}`;
}

$("domains").addEventListener("change", (event) => choose(event.target.value).catch(problem));
$("search").addEventListener("input", list);
$("search").addEventListener("keydown", (event) => {
  if (event.key === "ArrowDown") $("domains").querySelector("input")?.focus();
  else if (event.key === "Enter" && matches().length) choose(matches()[0]).catch(problem);
  else return;
  event.preventDefault();
});

// --- images ------------------------------------------------------------------------------------
let [image, camera] = [null, null]; // a Blob and a MediaStream

function show(file, none = "") {
  if (!file) return problem(none);
  image = file;
  cameraOff();
  URL.revokeObjectURL($("picture").src);
  Object.assign($("picture"), { src: URL.createObjectURL(file), alt: `The image ${file.name ?? ""}`, hidden: false });
  $("hint").hidden = true;
  choose(domain).catch(problem);
}

$("picture").addEventListener("error", () => {
  $("picture").hidden = true;
  Object.assign($("hint"), { textContent: "This browser cannot show this file; the server may.", hidden: false });
});

for (const input of document.querySelectorAll("input[type=file]")) {
  input.addEventListener("change", () => {
    show(input.files[0]);
    input.value = ""; // so that the same file can be chosen again
  });
}

// Anywhere on the page: a browser would leave it and open the file.
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", name === "dragover");
    if (name === "drop") show(event.dataTransfer.files[0], "What was dropped is no file: save the image first.");
  });
}
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((x) => x.type.startsWith("image/"));
  if (file || !event.target.matches("input")) show(file, "There is no image on the clipboard.");
});

// Browsers give the camera to pages of this machine or over TLS; elsewhere a phone has its own way.
const direct = Boolean(navigator.mediaDevices?.getUserMedia);
$("camera").hidden = !direct;
$("phone-camera").hidden = direct;

function look(through) {
  for (const id of ["video", "camera-row"]) $(id).hidden = !through;
  for (const id of ["picture", "hint", "camera"]) $(id).hidden = through || !direct;
  if (!through) $(image ? "hint" : "picture").hidden = true;
}

function cameraOff() {
  if (!camera) return;
  for (const track of camera.getTracks()) track.stop();
  camera = null;
  $("live").checked = false;
  look(false);
  $("camera").focus();
}

function frame() {
  const canvas = element("canvas", "");
  [canvas.width, canvas.height] = [$("video").videoWidth, $("video").videoHeight];
  canvas.getContext("2d").drawImage($("video"), 0, 0);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
}

$("camera").addEventListener("click", async () => {
  try {
    camera = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    $("video").srcObject = camera;
    await $("video").play();
    look(true);
    $("take").focus();
  } catch (error) {
    problem(`The camera cannot be used: ${error.message || error.name}`);
  }
});
$("camera-off").addEventListener("click", cameraOff);
$("take").addEventListener("click", async () => show(await frame()));
$("live").addEventListener("change", async () => {
  while (camera && $("live").checked) {
    const taken = await frame();
    if (!camera) break;
    image = taken;
    await answer();
    // As fast as answers come; slowly where they fail.
    await new Promise((resolve) => setTimeout(resolve, $("problem").hidden ? 0 : 1000));
  }
});

// --- answers -----------------------------------------------------------------------------------
let turn = 0;
const trips = []; // milliseconds there and back

async function answer() {
  const own = ++turn; // an answer that comes after a newer question is not shown
  const [asked, begun] = [domain, performance.now()];
  const kind = image.type.startsWith("image/") ? image.type : "application/octet-stream";
  const question = { method: "POST", body: image, headers: { "Content-Type": kind } };
  $("answers").classList.add("waiting");
  try {
    const found = await ask(`v1/domains/${encodeURIComponent(asked)}:classify`, question);
    if (own !== turn) return;
    problem("");
    tripped(performance.now() - begun);
    tell(asked, found.predictions[0]);
  } catch (error) {
    if (own !== turn) return;
    problem(error);
    $("best").textContent = $("said").textContent = "";
    $("answers").replaceChildren();
  }
  $("answers").classList.remove("waiting");
}

function tell(asked, found) {
  Object.assign($("best"), { textContent: found.class, className: "found" });
  // A screen reader need not hear every percent of a running camera.
  $("said").textContent = `${asked}: ${found.class}` + (camera ? "" : `, ${percent(found.probability)}`);
  const rows = found.top.map((row) => {
    const [item, bar] = [element("li", ""), element("span", "bar")];
    bar.append(element("span", ""));
    bar.firstChild.style.width = `${100 * row.probability}%`;
    item.append(element("span", "", row.name), element("span", "share", percent(row.probability)), bar);
    return item;
  });
  $("answers").replaceChildren(...rows);
}

function tripped(ms) {
  if (trips.push(ms) > 60) trips.shift();
  const middle = [...trips].sort((a, b) => a - b)[Math.floor(trips.length / 2)];
  $("trip").hidden = false;
  $("trip-text").textContent = `There and back in ${time(ms)}; median of the last ${trips.length}: ${time(middle)}`;
  const points = trips.map((x, i) => `${(240 * i) / (trips.length - 1 || 1)},${34 - (32 * x) / Math.max(...trips)}`);
  $("trips").replaceChildren(drawn("path", { d: `M${points.join("L")}` }));
}

// --- the server --------------------------------------------------------------------------------
let before = null;
const colours = new Map(); // of the domains of the batches that are shown

async function watch() {
  if (!document.hidden) await ask("v1/activity").then(tellActivity, () => ($("rate").textContent = "–"));
  setTimeout(watch, EVERY);
}

function tellActivity(now) {
  now.at = performance.now();
  const seconds = (now.at - before?.at) / 1000;
  if (before) $("rate").textContent = Math.max(0, (now.images - before.images) / seconds).toFixed(1);
  before = now;
  for (const id of ["waiting", "requests", "refused"]) $(id).textContent = number.format(now[id]);
  const mean = (name) => time(now.spent_us[name] / 1000 / now.requests);
  $("steps").textContent = now.requests
    ? `A request takes ${mean("total")} on average: reading and decoding ${mean("input")}, ` +
      `waiting ${mean("queue")}, the network ${mean("network")}.`
    : "";
  if (now.recent.length) draw(now.recent.map((run) => Object.entries(run.domains)));
}

function draw(runs) {
  const totals = new Map();
  for (const [name, rows] of runs.flat()) totals.set(name, (totals.get(name) ?? 0) + rows);
  for (const name of colours.keys()) if (!totals.has(name)) colours.delete(name);
  const free = [...Array(COLOURS).keys()].filter((x) => ![...colours.values()].includes(x));
  const order = [...totals].sort((a, b) => b[1] - a[1]);
  for (const [name] of order) if (!colours.has(name) && free.length) colours.set(name, free.shift());

  const images = runs.map((run) => run.reduce((sum, [, rows]) => sum + rows, 0));
  const [all, most] = [images.reduce((a, b) => a + b), Math.max(...images)];
  const side = Math.min(10, 64 / most);
  const squares = runs.flatMap((run, column) => {
    const each = run.flatMap(([name, rows]) => Array(rows).fill(`c${colours.get(name) ?? COLOURS}`));
    const place = (row) => ({ x: 10 * column, y: 64 - (row + 1) * side, width: 9, height: 0.9 * side });
    return each.map((colour, row) => drawn("rect", { class: colour, ...place(row) }));
  });
  $("mix").replaceChildren(...squares);
  const held = `${counted(all, "image")} of ${counted(totals.size, "domain")}, up to ${counted(most, "image")} each`;
  $("mix").setAttribute("aria-label", `The last ${counted(runs.length, "batch")}: ${held}.`);
  $("rows").textContent = (all / runs.length).toFixed(1);
  $("mixed").textContent = (runs.flat().length / runs.length).toFixed(1);

  const legend = order.filter(([name]) => colours.has(name)).map(([name, rows]) => [colours.get(name), name, rows]);
  const rest = order.filter(([name]) => !colours.has(name));
  if (rest.length) legend.push([COLOURS, `${rest.length} more`, rest.reduce((sum, [, rows]) => sum + rows, 0)]);
  const items = legend.map(([colour, name, rows]) => {
    const [item, swatch] = [element("li", ""), drawn("svg", { viewBox: "0 0 9 9", "aria-hidden": "true" })];
    swatch.append(drawn("rect", { class: `c${colour}`, width: 9, height: 9 }));
    item.append(swatch, `${name} ${number.format(rows)}`);
    return item;
  });
  $("legend").replaceChildren(...items);
}

start().catch(problem);
