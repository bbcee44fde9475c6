// The console. It shows the predictions for one image at every strength, and lets operators change the default β.
// It uses the HTTP API only. Text from the server is inserted as text, never as markup.

const $ = (id) => document.getElementById(id);
const STEP = 0.05;
const SMALL_IMAGE = 128; // pixels; a smaller image is enlarged with its pixels visible
const percent = (share, digits = 1) => `${fixed(100 * share, digits)} %`;
const interval = (accuracy) =>
  `${percent(accuracy.value)} (${fixed(100 * accuracy.low, 1)}\u2060–\u2060${fixed(100 * accuracy.high, 1)})`; // U+2060: no line break
let model, sweep; // the last responses of /ui/model and /sweep

// The number as text, rounded as the model card rounds it: a tie goes to the even digit. toFixed() rounds a tie up.
function fixed(number, digits) {
  const isTie = Math.abs(number * 2 ** (digits + 1)) % 2 === 1; // exact: only these numbers end in a five
  if (!isTie) return number.toFixed(digits);
  const below = Math.floor(number * 10 ** digits);
  return ((below + Math.abs(below % 2)) / 10 ** digits).toFixed(digits);
}

// A label as a person reads it: "speed limit 30" for "speed_limit_30", and for "01-speed-limit-30" if every label of the
// model begins with a number. A label with a space stays.
function readable(label) {
  if (label.includes(" ")) return label;
  const text = model.has_numbered_labels ? label.replace(/^\d+[-_.]+/, "").replaceAll("-", " ") : label;
  return text.replaceAll("_", " ").trim() || label;
}

function element(name, text = "", attributes = {}) {
  const node = document.createElement(name);
  node.textContent = text;
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}

function svgElement(name, attributes, text = "") {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.textContent = text;
  return node;
}

function showError(message) {
  $("error").hidden = !message;
  $("error").textContent = message ?? "";
}

// Returns the response. Throws an Error with the problem's status and detail if the response is an error.
async function request(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The server does not respond.");
  }
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  const wait = response.headers.get("Retry-After");
  const error = new Error(`${problem.title ?? response.status}: ${problem.detail ?? ""}${wait ? ` Try again in ${wait} s.` : ""}`);
  error.status = response.status;
  error.detail = problem.detail;
  throw error;
}

// An image at every strength

// The value at x of the line through the points (xs, ys), as the server computes it.
function interpolate(x, xs, ys) {
  const upper = Math.max(1, xs.findIndex((value) => value >= x)), lower = upper - 1;
  return ys[lower] + ((ys[upper] - ys[lower]) * (x - xs[lower])) / (xs[upper] - xs[lower]);
}

const betaOf = (strength) => +interpolate(strength, model.strength.strengths, model.strength.betas).toFixed(6);

// The strengths from 0 to 1 in steps of STEP whose β clients may use.
function strengthGrid() {
  const strengths = [];
  for (let n = 0; n <= Math.round(1 / STEP); n++) {
    const strength = +(n * STEP).toFixed(2), beta = betaOf(strength);
    if (beta >= model.beta_min && beta <= model.beta_max) strengths.push(strength);
  }
  return strengths;
}

let latestFile = 0;

// Returns whether the result of this file is shown. It is not after an error, or if another file was chosen since.
async function classifyFile(file) {
  const number = ++latestFile;
  clearResult();
  try {
    const response = await sweepFile(file);
    if (number !== latestFile) return false;
    sweep = response;
    if (sweep.model !== model.name || sweep.version !== model.version) await showModel();
  } catch (error) {
    if (number === latestFile) showError(error.message);
    return false;
  }
  $("image").onload = () => $("image").classList.toggle("small", $("image").naturalWidth < SMALL_IMAGE);
  $("image").src = URL.createObjectURL(file);
  $("image").alt = `The image that was classified: ${file.name}`;
  const nearest = sweep.betas.map((beta) => Math.abs(beta - (model.default_beta ?? 0)));
  $("strength").max = sweep.betas.length - 1;
  $("strength").value = nearest.indexOf(Math.min(...nearest));
  $("image").hidden = $("modes").hidden = $("result").hidden = $("figure").hidden = false;
  drawCurve();
  showModes();
  showSelected();
  return true;
}

// Removes the image and result of the previous file, so that they never stand beside the error of the next one.
function clearResult() {
  showError();
  sweep = undefined;
  for (const part of ["image", "modes", "result", "figure", "change-figure"]) $(part).hidden = true;
  $("gallery-sentence").textContent = "";
  URL.revokeObjectURL($("image").src);
  $("image").removeAttribute("src");
}

async function sweepFile(file) {
  let body;
  try {
    body = await file.arrayBuffer(); // an ArrayBuffer has no Content-Type, so the server detects the type from the bytes
  } catch {
    throw new Error(`${file.name} cannot be read. Choose a file that is not a folder, and choose it again if it has changed.`);
  }
  try {
    return await (await request(`sweep?strengths=${strengthGrid().join(",")}&top_k=5`, { method: "POST", body })).json();
  } catch (error) {
    throw [400, 413, 415].includes(error.status) ? new Error(`${file.name}: ${error.detail}`) : error;
  }
}

// The gallery: drawn pictures, each before and after two attacks

let gallery, chosen; // the response of /ui/gallery, and the picture of it that is shown

const pngUrl = (base64) => `data:image/png;base64,${base64}`;

async function showGallery() {
  chosen = undefined;
  gallery = model.has_gallery ? await (await request("ui/gallery")).json() : undefined;
  $("gallery").hidden = $("gallery-details").hidden = !gallery;
  if (!gallery) return;
  const { signs, pictures, drawings_tried, clean_attacks, clean_attacks_failed, both_attacks_failed } = gallery;
  $("gallery-about").textContent =
    `Each of ${signs} signs was drawn until an attack misled the clean mode: ` +
    `${gallery.attack}, at most ${gallery.epsilon_255}/255 a value. Drawings tried: ${drawings_tried}. Drawings attacked for the ` +
    `clean token: ${clean_attacks}, failed attacks: ${clean_attacks_failed}. Of the ${pictures.length} pictures, the clean mode is wrong and the robust mode right on ` +
    `${gallery.clean_wrong_robust_right}. The attack on both tokens failed on ${both_attacks_failed}. A drawing does not measure robustness; ` +
    `the table below does.`;
  $("signs").replaceChildren(...gallery.pictures.map((picture) => {
    const button = element("button", "", { type: "button", title: picture.title, "aria-pressed": "false" });
    button.append(element("img", "", { src: pngUrl(picture.drawn), alt: picture.title }));
    button.onclick = () => showPicture(picture, "clean");
    return button;
  }));
  markChosen();
}

// Shows which picture of the gallery is chosen, in which version.
function markChosen(version) {
  $("versions").hidden = !chosen;
  for (const button of $("versions").children) button.setAttribute("aria-pressed", String(button.value === version));
  [...$("signs").children].forEach((button, n) => button.setAttribute("aria-pressed", String(gallery.pictures[n] === chosen)));
}

// Shows a picture. If the user has chosen it, scrolls to its readings if they are out of view, as on a phone.
async function showPicture(picture, version, { isChoice = true } = {}) {
  const bytes = Uint8Array.from(atob(picture[version]), (character) => character.charCodeAt(0));
  const title = version === "drawn" ? picture.title : `${picture.title}, attacked`;
  chosen = picture;
  markChosen(version);
  $("file").value = "";
  if (!(await classifyFile(new File([bytes], title, { type: "image/png" })))) return;
  if (chosen !== picture) return; // the bundle was replaced meanwhile, with its gallery
  $("gallery-sentence").textContent = `The true label is ${readable(picture.label)}. ${readingSentence(picture.label)}`;
  if (isChoice) $("modes").scrollIntoView({ block: "nearest" });
  if (version !== "drawn") await showChange(picture, version);
}

// Says at which strengths the label is the true one.
function readingSentence(label) {
  const isRight = sweep.answers.map((answer) => answer === label), first = isRight.indexOf(true), wrong = sweep.answers[0];
  if (first < 0) return `The model is wrong at every strength: it reads ${[...new Set(sweep.answers)].map(readable).join(", then ")}.`;
  if (isRight.every(Boolean)) return "The model is right at every strength.";
  if (first && isRight.slice(first).every(Boolean))
    return `The clean mode reads ${readable(wrong)}. From strength ${fixed(sweep.strengths[first], 2)} on, the model is right.`;
  return `The model is right at ${isRight.filter(Boolean).length} of ${isRight.length} strengths.`;
}

async function pixelsOf(base64) {
  const image = new Image();
  image.src = pngUrl(base64);
  await image.decode();
  const canvas = element("canvas", "", { width: image.naturalWidth, height: image.naturalHeight });
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

// Draws the change of each pixel, added to grey and enlarged so that the largest possible change is black or white.
async function showChange(picture, version) {
  const number = latestFile, factor = gallery.difference_factor;
  const [drawn, attacked] = await Promise.all([pixelsOf(picture.drawn), pixelsOf(picture[version])]);
  if (number !== latestFile) return; // the user has chosen another image since
  const shown = attacked.data;
  for (let n = 0; n < shown.length; n++) if (n % 4 !== 3) shown[n] = 128 + factor * (shown[n] - drawn.data[n]);
  [$("change-picture").width, $("change-picture").height] = [attacked.width, attacked.height];
  $("change-picture").getContext("2d").putImageData(attacked, 0, 0);
  $("change-caption").textContent = `The change of each pixel, ${factor} times as large. Grey is no change.`;
  $("change-figure").hidden = false;
}

// The curve is drawn at the size of its element, so that its text has the same size on a phone.
const LEFT = 55, KEY = 23, BOTTOM = 260, LINE = 16; // KEY: before a label, with the line in the colour of its curve
let width = 640, right = 125; // of the curve, and of the space for the labels beside it
const X = (strength) => LEFT + (width - LEFT - right) * strength;
const Y = (probability) => BOTTOM - (BOTTOM - 20) * probability;

function drawCurve() {
  const svg = $("curve");
  width = svg.clientWidth;
  svg.setAttribute("viewBox", `0 0 ${width} 300`);
  svg.replaceChildren($("curve-title"));
  const labels = sweep.curves.map((curve) => svgElement("text", {}, readable(curve.label)));
  svg.append(...labels);
  right = Math.min(KEY + 2 + Math.max(...labels.map((label) => label.getComputedTextLength())), 0.45 * width);
  for (const share of [0, 0.5, 1]) {
    svg.append(svgElement("line", { class: "axis", x1: X(0), x2: X(1), y1: Y(share), y2: Y(share), "stroke-opacity": share ? 0.3 : 1 }));
    svg.append(svgElement("text", { x: 48, y: Y(share) + 4, "text-anchor": "end" }, percent(share, 0)));
  }
  const ticks = X(1) - X(0) < 200 ? [0, 0.5, 1] : [0, 0.25, 0.5, 0.75, 1];
  for (const strength of ticks) svg.append(svgElement("text", { x: X(strength), y: 280, "text-anchor": "middle" }, String(strength)));
  svg.append(svgElement("text", { x: X(0.5), y: 297, "text-anchor": "middle" }, "strength"));
  const ends = [];
  sweep.curves.forEach((curve, n) => {
    const points = curve.probabilities.map((share, i) => `${X(sweep.strengths[i])},${Y(share)}`).join(" ");
    svg.append(svgElement("polyline", { class: `line s${n}`, points }));
    ends.push({ label: labels[n], n, y: Y(curve.probabilities.at(-1)) });
  });
  // Labels are at the right end of their curves. Overlapping labels are moved apart: first down, then up from the bottom.
  ends.sort((first, second) => first.y - second.y);
  ends.forEach((end, i) => { if (i) end.y = Math.max(end.y, ends[i - 1].y + LINE); });
  for (let i = ends.length - 1, limit = BOTTOM; i >= 0; i--, limit -= LINE) ends[i].y = Math.min(ends[i].y, limit);
  for (const end of ends) {
    const at = X(1) + 6;
    svg.append(svgElement("line", { class: `s${end.n}`, x1: at, x2: at + 12, y1: end.y, y2: end.y, "stroke-width": 3 }));
    const text = end.label.textContent;
    end.label.setAttribute("x", X(1) + KEY);
    end.label.setAttribute("y", end.y + 4);
    svg.append(end.label);
    for (let n = text.length - 1; n && X(1) + KEY + end.label.getComputedTextLength() > width; n--) end.label.textContent = `${text.slice(0, n)}…`;
  }
  svg.append(svgElement("line", { class: "marker", id: "marker", y1: Y(1), y2: Y(0) }));
  const strengthOf = (beta) => sweep.strengths[sweep.betas.indexOf(beta)];
  $("answer-changes").textContent = sweep.changes.length
    ? sweep.changes.map((change) => `Between strength ${strengthOf(change.after_beta)} and ${strengthOf(change.before_beta)} the label changes from ${readable(change.from_label)} to ${readable(change.to_label)}.`).join(" ")
    : `The label is ${readable(sweep.answers[0])} at every strength.`;
}

// The label and its probability at the lowest and the highest strength that clients may use.
function showModes() {
  const last = sweep.answers.length - 1;
  for (const [mode, at] of [["clean", 0], ["robust", last]]) {
    const curve = sweep.curves.find((candidate) => candidate.label === sweep.answers[at]);
    $(`${mode}-label`).textContent = readable(sweep.answers[at]);
    $(`${mode}-label`).title = sweep.answers[at];
    $(`${mode}-share`).textContent = `${percent(curve.probabilities[at])}${sweep.betas[at] === (at ? 1 : 0) ? "" : `, at β ${fixed(sweep.betas[at], 2)}`}`;
  }
  $("modes").classList.toggle("differ", sweep.answers[0] !== sweep.answers[last]);
}

function showSelected() {
  const at = Number($("strength").value), strength = sweep.strengths[at], beta = sweep.betas[at];
  $("strength-value").textContent = fixed(strength, 2);
  $("beta-value").textContent = fixed(beta, 2);
  $("strength").setAttribute("aria-valuetext", `strength ${fixed(strength, 2)}, β ${fixed(beta, 2)}: ${readable(sweep.answers[at])}`);
  for (const end of ["x1", "x2"]) $("marker").setAttribute(end, X(strength));
  const shares = sweep.curves.map((curve) => [curve.label, curve.probabilities[at]]).sort((first, second) => second[1] - first[1]);
  showBars($("bars"), shares.map(([label, share]) => [readable(label), share, percent(share)]));
  const measured = measuredAccuracy(beta);
  $("measured-title").textContent = !measured || measured.isExact ? "Measured accuracy at this strength" : "Estimated accuracy at this strength";
  const rows = measured ? [["clean images", measured.clean], ["attacked images", measured.robust]] : [];
  showBars($("measured"), rows.map(([label, share]) => [label, share, accuracyAt(measured, share)]));
  $("measured-note").textContent = measured ? `${measured.note}${measured.mark}` : "Not measured for this model.";
}

// An accuracy as text. An estimate begins with ≈.
const accuracyAt = (measured, share) => `${measured.isExact ? "" : "≈ "}${percent(share)}`;

// The accuracies at a β, and a note on them. At a β that was not measured, they are estimates: the values on the line
// between the two nearest rows of the table. Returns null outside the measured β.
function measuredAccuracy(beta) {
  const rows = model.accuracy, upper = rows.findIndex((row) => row.beta >= beta - 1e-9);
  if (upper < 0 || (upper === 0 && rows[0].beta > beta + 1e-9)) return null;
  const row = rows[upper], isExact = Math.abs(row.beta - beta) < 1e-9, low = isExact ? row : rows[upper - 1];
  const share = isExact ? 0 : (beta - low.beta) / (row.beta - low.beta);
  const failed = [...new Set([...low.failed_checks, ...row.failed_checks])];
  const notes = [`Attacked by ${row.attack}, ε = ${row.epsilon_255}/255, ${row.n} images`];
  if (!isExact) notes.push(`not measured here, but estimated on the line between the measured β ${low.beta} and ${row.beta}`);
  const mark = failed.length ? ` ! too high: check failed (${failed.join("; ")})` : "";
  const at = (kind) => (1 - share) * low[kind].value + share * row[kind].value;
  return { clean: at("clean"), robust: at("robust"), isExact, mark, note: `${notes.join("; ")}.` };
}

function showBars(parent, rows) {
  parent.replaceChildren(...rows.map(([label, share, text]) => {
    const row = element("div", "", { class: "bar" }), track = element("span"), bar = element("i");
    bar.style.width = percent(share, 2).replace(" ", "");
    track.append(bar);
    row.append(element("span", label), track, element("span", text));
    return row;
  }));
}

// For operators

let token = sessionStorage.getItem("tureen-token"), state, previousMetrics;

const operatorRequest = (path, options = {}) =>
  request(path, { ...options, headers: { ...options.headers, Authorization: `Bearer ${token}` } });

const writeSettings = (method, path, body) =>
  operatorRequest(path, { method, headers: { "If-Match": `"${state.revision}"` }, body: body && JSON.stringify(body) });

async function signIn() {
  try {
    await operatorRequest("admin/me");
    await refresh();
  } catch (error) {
    sessionStorage.removeItem("tureen-token");
    token = null;
    showError(error.message);
    return;
  }
  showError();
  sessionStorage.setItem("tureen-token", token);
  $("dial").value = state.default_strength ?? 0;
  showExpected();
  $("sign-in").hidden = true;
  $("controls").hidden = false;
  setInterval(() => refresh().catch((error) => showError(error.message)), 2000);
}

async function refresh() {
  const response = await (await operatorRequest("admin/beta")).json();
  const isNewRevision = state?.revision !== response.revision;
  state = response;
  const by = state.changed ? `, ${state.changed.action} by ${state.changed.who}: “${state.changed.reason}”` : "";
  $("active").textContent = `strength ${state.default_strength ?? "none"}, β ${state.default_beta ?? "none"} (${state.default_beta_source}), revision ${state.revision}${by}`;
  $("pending").replaceChildren(...state.pending.map((plan) => {
    const target = plan.default_beta === null ? "the server's default β" : `β ${plan.default_beta}`;
    const line = element("span", `${plan.kind} to ${target} at ${plan.at.slice(0, 19)}Z `);
    const button = element("button", "Cancel", { type: "button" });
    button.onclick = () => {
      const reason = prompt(`Cancel ${plan.kind} to ${target}? Reason:`);
      if (reason) applyChange(() => writeSettings("DELETE", `admin/beta/pending/${plan.id}?reason=${encodeURIComponent(reason)}`));
    };
    line.append(button);
    return line;
  }));
  const isNewModel = state.model.name !== model.name || state.model.version !== model.version;
  if (isNewModel) await showModel();
  if (isNewRevision || isNewModel) showExpected();
  if (isNewRevision) await showHistory();
  await showLive();
}

const accuracyText = (measured) => measured
  ? `clean ${accuracyAt(measured, measured.clean)}, robust ${accuracyAt(measured, measured.robust)}${measured.mark}${measured.isExact ? "" : " (estimated between two measured β)"}`
  : "not measured";

function showExpected() {
  const strength = Number($("dial").value), beta = betaOf(strength);
  $("dial-value").textContent = `${fixed(strength, 2)} (β ${fixed(beta, 2)})`;
  const now = state.default_beta === null ? null : measuredAccuracy(state.default_beta), then = measuredAccuracy(beta);
  $("expected").textContent = state.default_beta === null ? "" : `Now: ${accuracyText(now)}. Then: ${accuracyText(then)}.`;
  $("comparison").hidden = !now || !then;
  if ($("comparison").hidden) return;
  $("comparison").tBodies[0].replaceChildren(...["clean", "robust"].map((kind) => {
    const line = element("tr"), points = 100 * (then[kind] - now[kind]);
    line.append(element("th", kind === "clean" ? "Clean images" : "Attacked images", { scope: "row" }));
    const mark = (measured) => (kind === "robust" ? measured.mark : "");
    for (const text of [accuracyAt(now, now[kind]) + mark(now), accuracyAt(then, then[kind]) + mark(then), `${points > 0 ? "+" : points < 0 ? "−" : ""}${fixed(Math.abs(points), 1)} points`])
      line.append(element("td", text));
    return line;
  }));
}

async function applyChange(change) {
  try {
    await change();
    showError();
  } catch (error) {
    showError(error.status === 412 ? "Another operator changed the settings first. Check the settings above, and try again." : error.message);
  }
  await refresh().catch((error) => showError(error.message));
  showExpected();
}

async function showHistory() {
  const { revisions } = await (await operatorRequest("admin/beta/history?limit=20")).json();
  $("history").tBodies[0].replaceChildren(...revisions.map((row) => {
    const line = element("tr"), changes = row.changes.join(", ") || "no change";
    for (const text of [row.revision, row.at.slice(0, 19).replace("T", " "), row.who, `${row.action}: ${changes}`, row.reason])
      line.append(element("td", text));
    const cell = element("td"), button = element("button", "Roll back to this", { type: "button" });
    button.disabled = row.revision === state.revision;
    button.onclick = () => {
      const reason = prompt(`Roll back to the settings of revision ${row.revision}? Reason:`);
      if (reason) applyChange(() => writeSettings("POST", "admin/beta/rollback", { revision: row.revision, reason }));
    };
    cell.append(button);
    line.append(cell);
    return line;
  }));
}

// The smallest bucket bound in seconds that contains this share of the requests to /classify; null without a request.
function latencyQuantile(metrics, share) {
  const buckets = Object.entries(metrics)
    .map(([key, count]) => [/^tureen_request_seconds_bucket\{le="([^"]*)",route="\/classify"\}/.exec(key)?.[1], count])
    .filter(([bound]) => bound !== undefined)
    .map(([bound, count]) => [bound === "+Inf" ? Infinity : Number(bound), count])
    .sort((first, second) => first[0] - second[0]);
  const total = buckets.at(-1)?.[1];
  return total ? buckets.find(([, count]) => count >= share * total)[0] : null;
}

function clientRules() {
  const rules = [state.clients_may_choose ? `may choose β ${state.beta_min} to ${state.beta_max}` : "may not choose β"];
  for (const [name, policy] of Object.entries(state.policies)) {
    rules.push(`policy ${name}: ${typeof policy === "number" ? `β ${policy}` : policy.mix}`);
  }
  if (state.canary) rules.push(`canary: ${percent(state.canary.share, 0)} at β ${state.canary.beta}`);
  return rules.join("; ");
}

// A label of the metric of β, such as "0" or "below 0.5", as text with its strength.
function strengthText(label) {
  const [, below, bound] = /^(below )?(.*)$/.exec(label), beta = Number(bound);
  if (Number.isNaN(beta) || beta < 0 || beta > 1) return `β ${label}`;
  const strength = +interpolate(beta, model.strength.betas, model.strength.strengths).toFixed(2);
  return `${below ?? ""}${strength} (β ${bound})`;
}

async function showLive() {
  const metrics = {}, at = performance.now();
  for (const line of (await (await operatorRequest("metrics")).text()).split("\n")) {
    const match = /^([a-z_]+)(\{[^}]*\})? (\S+)$/.exec(line);
    if (match) metrics[match[1] + (match[2] ?? "")] = Number(match[3]);
  }
  const sum = (name, label) =>
    Object.entries(metrics).filter(([key]) => key.startsWith(name) && key.includes(label)).reduce((total, [, value]) => total + value, 0);
  if (previousMetrics) {
    const seconds = (at - previousMetrics.at) / 1000, rate = (key) => (metrics[key] - (previousMetrics.metrics[key] ?? 0)) / seconds;
    const traffic = {};
    for (const key of Object.keys(metrics)) {
      const beta = /^tureen_classifications_total\{beta="([^"]*)"/.exec(key)?.[1];
      if (beta !== undefined) traffic[beta] = (traffic[beta] ?? 0) + rate(key);
    }
    const total = Object.values(traffic).reduce((subtotal, images) => subtotal + images, 0);
    showBars($("traffic"), Object.entries(traffic).sort().map(([beta, images]) => [strengthText(beta), total ? images / total : 0, fixed(images, 1)]));
  }
  previousMetrics = { at, metrics };
  const agree = sum("tureen_mode_comparisons_total", '"agree"'), disagree = sum("tureen_mode_comparisons_total", '"disagree"');
  const [median, p99] = [0.5, 0.99].map((share) => latencyQuantile(metrics, share));
  const rows = [
    ["Expected queue time", `${fixed(1000 * (metrics.tureen_expected_queue_seconds ?? 0), 1)} ms`],
    ["Latency", median === null ? "no request yet" : `p50 within ${1000 * median} ms, p99 within ${1000 * p99} ms, since the start`],
    ["Modes disagree", agree + disagree ? `${percent(disagree / (agree + disagree))} of ${agree + disagree}; a signal, not a detector` : "not sampled"],
    ["Clients", clientRules()],
    ["Workers", state.workers.map((worker) => `${worker.worker} at revision ${worker.revision}, serves ${worker.model ?? "no model yet"}`).join("; ")],
    ["Store", state.store.is_reachable ? "reachable" : `unreachable since ${state.store.unreachable_since}`],
  ];
  $("live").replaceChildren(...rows.flatMap(([name, value]) => [element("dt", name), element("dd", value)]));
}

// The page

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  $("theme").textContent = theme === "dark" ? "Light" : "Dark";
  $("theme").setAttribute("aria-pressed", String(theme === "dark"));
}

setTheme(localStorage.getItem("tureen-theme") ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
$("theme").onclick = () => {
  const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  localStorage.setItem("tureen-theme", theme);
  setTheme(theme);
};
$("file").onchange = () => chooseFile($("file").files[0]);
for (const button of $("versions").children) button.onclick = () => showPicture(chosen, button.value);
$("strength").oninput = showSelected;
$("dial").oninput = showExpected;
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") takeFile(event.dataTransfer.files[0]);
  });
}
document.addEventListener("paste", (event) => takeFile(event.clipboardData.files[0]));

function takeFile(file) {
  if (!file || $("try").hidden) return;
  $("file").value = ""; // otherwise the input shows the name of the file chosen before
  chooseFile(file);
}

function chooseFile(file) {
  if (!file) return;
  chosen = undefined;
  markChosen();
  classifyFile(file);
}

new ResizeObserver(() => {
  if (!sweep || $("figure").hidden || $("curve").clientWidth === width) return;
  drawCurve();
  showSelected();
}).observe($("figure"));
$("sign-in").onsubmit = (event) => {
  event.preventDefault();
  token = $("token").value.trim();
  $("token").value = "";
  signIn();
};
$("change").onsubmit = (event) => {
  event.preventDefault();
  const strength = Number($("dial").value), ttl = Number($("ttl").value);
  if (!confirm(`Change the default strength to ${$("dial-value").textContent}?\n${$("expected").textContent}`)) return;
  applyChange(() => writeSettings("PUT", "admin/beta", { default_strength: strength, reason: $("reason").value, ...(ttl ? { ttl_s: ttl } : {}) }));
};

async function showModel() {
  model = await (await request("ui/model")).json();
  $("model").textContent = `${model.name} ${model.version}`;
  $("accuracy").tBodies[0].replaceChildren(...model.accuracy.map((row) => {
    const line = element("tr");
    for (const text of [row.beta, interval(row.clean), interval(row.robust), row.n]) line.append(element("td", text));
    if (row.failed_checks.length) {
      line.children[2].append(element("strong", ` ! too high: check failed (${row.failed_checks.join("; ")})`));
    }
    return line;
  }));
  await showGallery();
  const row = model.accuracy[0];
  $("measurement").textContent = row
    ? `Robust accuracy is empirical. It was measured white-box on the soup of each row under ${row.attack}, ε = ${row.epsilon_255}/255, with 95 % intervals. It is not a guarantee, and does not cover other attacks.`
    : "No accuracy was measured for this model.";
}

try {
  await showModel();
  $("operator").hidden = !model.is_operators;
  $("try").hidden = model.is_operators || !model.has_two_tokens || !model.clients_may_choose;
  if (gallery && !$("try").hidden) await showPicture(gallery.pictures[0], "clean", { isChoice: false });
  if (model.is_operators && token) await signIn();
} catch (error) {
  showError(error.message);
}
document.body.dataset.loaded = "true";
