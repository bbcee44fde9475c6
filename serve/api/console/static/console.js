// The console: what one image's answer does over β, and for operators the default β of the service.
// Knows the HTTP contract; all text that comes from a server goes in as text, never as markup.

const $ = (id) => document.getElementById(id);
const STEP = 0.05;
const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;
const interval = (one) => `${percent(one.value)} (${(100 * one.low).toFixed(1)}\u2060–\u2060${(100 * one.high).toFixed(1)})`; // kept on one line
let model, sweep;

function element(name, text = "", attributes = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function drawn(name, attributes, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

function tell(problem) {
  $("error").hidden = !problem;
  $("error").textContent = problem ?? "";
}

async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("The server does not answer.");
  }
  if (answer.ok) return answer;
  const problem = await answer.json().catch(() => ({}));
  const wait = answer.headers.get("Retry-After");
  const error = new Error(`${problem.title ?? answer.status}: ${problem.detail ?? ""}${wait ? ` Try again in ${wait} s.` : ""}`);
  error.status = answer.status;
  error.detail = problem.detail;
  throw error;
}

// An image at every β

function grid() {
  const betas = [];
  for (let n = 0; n <= Math.round(1 / STEP); n++) {
    const beta = +(n * STEP).toFixed(2);
    if (beta >= model.beta_min && beta <= model.beta_max) betas.push(beta);
  }
  return betas;
}

let shown = 0;

async function show(file) {
  if (!file) return;
  const turn = ++shown;
  clear();
  try {
    const found = await sweepOf(file);
    if (turn !== shown) return; // another file came meanwhile
    sweep = found;
    if (sweep.model !== model.name || sweep.version !== model.version) await showModel();
  } catch (error) {
    if (turn === shown) tell(error.message);
    return;
  }
  $("image").src = URL.createObjectURL(file);
  $("image").alt = `The image that was classified: ${file.name}`;
  const nearest = sweep.betas.map((beta) => Math.abs(beta - (model.default_beta ?? 0)));
  $("beta").max = sweep.betas.length - 1;
  $("beta").value = nearest.indexOf(Math.min(...nearest));
  $("seen").hidden = $("figure").hidden = false;
  drawCurve();
  follow();
}

// Nothing of the file before stays beside the name of the next one.
function clear() {
  tell();
  sweep = undefined;
  $("seen").hidden = $("figure").hidden = true;
  URL.revokeObjectURL($("image").src);
  $("image").removeAttribute("src");
}

async function sweepOf(file) {
  let body;
  try {
    body = await file.arrayBuffer(); // without a type, which the browser takes from the name: the bytes decide
  } catch {
    throw new Error(`${file.name} cannot be read: is it a folder, or has it changed?`);
  }
  try {
    return await (await ask(`sweep?betas=${grid().join(",")}&top_k=5`, { method: "POST", body })).json();
  } catch (error) {
    throw [400, 413, 415].includes(error.status) ? new Error(`${file.name}: ${error.detail}`) : error;
  }
}

// The curve is drawn at the size it is shown at, so that its text is as large on a phone as elsewhere.
const LEFT = 55, RIGHT = 125, BOTTOM = 260, LINE = 16;
let width = 640;
const X = (beta) => LEFT + (width - LEFT - RIGHT) * beta;
const Y = (share) => BOTTOM - (BOTTOM - 20) * share;

function drawCurve() {
  const svg = $("curve");
  width = svg.clientWidth;
  svg.setAttribute("viewBox", `0 0 ${width} 300`);
  svg.replaceChildren($("curve-title"));
  for (const share of [0, 0.5, 1]) {
    svg.append(drawn("line", { class: "axis", x1: X(0), x2: X(1), y1: Y(share), y2: Y(share), "stroke-opacity": share ? 0.3 : 1 }));
    svg.append(drawn("text", { x: 48, y: Y(share) + 4, "text-anchor": "end" }, percent(share, 0)));
  }
  const ticks = X(1) - X(0) < 200 ? [0, 0.5, 1] : [0, 0.25, 0.5, 0.75, 1];
  for (const beta of ticks) svg.append(drawn("text", { x: X(beta), y: 280, "text-anchor": "middle" }, String(beta)));
  svg.append(drawn("text", { x: X(0.5), y: 297, "text-anchor": "middle" }, "β"));
  const ends = [];
  sweep.curves.forEach((curve, n) => {
    const points = curve.probabilities.map((share, i) => `${X(sweep.betas[i])},${Y(share)}`).join(" ");
    svg.append(drawn("polyline", { class: `line s${n}`, points }));
    ends.push({ label: curve.label, n, y: Y(curve.probabilities.at(-1)) });
  });
  // Labels stand at their lines' ends, moved apart where these lie on each other: down, then up from the bottom.
  ends.sort((one, other) => one.y - other.y);
  ends.forEach((end, i) => { if (i) end.y = Math.max(end.y, ends[i - 1].y + LINE); });
  for (let i = ends.length - 1, most = BOTTOM; i >= 0; i--, most -= LINE) ends[i].y = Math.min(ends[i].y, most);
  for (const end of ends) {
    const at = X(1) + 6;
    svg.append(drawn("line", { class: `s${end.n}`, x1: at, x2: at + 12, y1: end.y, y2: end.y, "stroke-width": 3 }));
    const label = drawn("text", { x: at + 17, y: end.y + 4 }, end.label);
    svg.append(label);
    for (let n = end.label.length - 1; n && at + 17 + label.getComputedTextLength() > width; n--) label.textContent = `${end.label.slice(0, n)}…`;
  }
  svg.append(drawn("line", { class: "marker", id: "marker", y1: Y(1), y2: Y(0) }));
  $("answer-changes").textContent = sweep.changes.length
    ? sweep.changes.map((one) => `Between β ${one.after_beta} and ${one.before_beta} the answer changes from ${one.from_label} to ${one.to_label}.`).join(" ")
    : `The answer is ${sweep.answers[0]} at every β.`;
}

function follow() {
  const at = Number($("beta").value), beta = sweep.betas[at];
  $("beta-value").textContent = beta.toFixed(2);
  $("beta").setAttribute("aria-valuetext", `β ${beta.toFixed(2)}: ${sweep.answers[at]}`);
  for (const end of ["x1", "x2"]) $("marker").setAttribute(end, X(beta));
  const shares = sweep.curves.map((curve) => [curve.label, curve.probabilities[at]]).sort((one, other) => other[1] - one[1]);
  showBars($("bars"), shares.map(([label, share]) => [label, share, percent(share)]));
}

function showBars(where, rows) {
  where.replaceChildren(...rows.map(([label, share, text]) => {
    const row = element("div", "", { class: "bar" }), whole = element("span"), bar = element("i");
    bar.style.width = percent(share, 2).replace(" ", "");
    whole.append(bar);
    row.append(element("span", label), whole, element("span", text));
    return row;
  }));
}

// For operators

let token = sessionStorage.getItem("tureen-token"), state, before;

const asOperator = (path, options = {}) =>
  ask(path, { ...options, headers: { ...options.headers, Authorization: `Bearer ${token}` } });

const write = (method, path, body) =>
  asOperator(path, { method, headers: { "If-Match": `"${state.revision}"` }, body: body && JSON.stringify(body) });

async function signIn() {
  try {
    await asOperator("admin/me");
    await refresh();
  } catch (error) {
    sessionStorage.removeItem("tureen-token");
    token = null;
    tell(error.message);
    return;
  }
  tell();
  sessionStorage.setItem("tureen-token", token);
  $("dial").value = state.default_beta ?? 0;
  turned();
  $("sign-in").hidden = true;
  $("desk").hidden = false;
  setInterval(() => refresh().catch((error) => tell(error.message)), 2000);
}

async function refresh() {
  const found = await (await asOperator("admin/beta")).json();
  const isOther = state?.revision !== found.revision;
  state = found;
  const by = state.changed ? `, ${state.changed.action} by ${state.changed.who}: “${state.changed.reason}”` : "";
  $("in-force").textContent = `β ${state.default_beta ?? "none"} (${state.default_beta_source}), revision ${state.revision}${by}`;
  $("planned").replaceChildren(...state.pending.map((plan) => {
    const line = element("span", `${plan.kind} to β ${plan.default_beta ?? "of the server"} at ${plan.at.slice(0, 19)}Z `);
    const button = element("button", "Cancel", { type: "button" });
    button.onclick = () => {
      const reason = prompt(`Cancel ${plan.kind} to β ${plan.default_beta ?? "of the server"}? Say why:`);
      if (reason) act(() => write("DELETE", `admin/beta/pending/${plan.id}?reason=${encodeURIComponent(reason)}`));
    };
    line.append(button);
    return line;
  }));
  const isOtherModel = state.model.name !== model.name || state.model.version !== model.version;
  if (isOtherModel) await showModel();
  if (isOther || isOtherModel) turned();
  if (isOther) await showHistory();
  await showLive();
}

function promised(beta) {
  const rows = model.accuracy, upper = rows.findIndex((row) => row.beta >= beta - 1e-9);
  if (upper < 0 || (upper === 0 && rows[0].beta > beta + 1e-9)) return "nothing was measured there";
  const row = rows[upper], exact = Math.abs(row.beta - beta) < 1e-9;
  const low = exact ? row : rows[upper - 1], share = exact ? 0 : (beta - low.beta) / (row.beta - low.beta);
  const between = (kind) => percent((1 - share) * low[kind].value + share * row[kind].value);
  return `clean ${between("clean")}, robust ${between("robust")}${exact ? "" : " (between two measured β)"}`;
}

function turned() {
  const beta = Number($("dial").value);
  $("dial-value").textContent = beta.toFixed(2);
  $("promise").textContent = state.default_beta === null ? "" : `Now: ${promised(state.default_beta)}. Then: ${promised(beta)}.`;
}

async function act(change) {
  try {
    await change();
    tell();
  } catch (error) {
    tell(error.status === 412 ? "Somebody else changed the settings meanwhile: look at what is in force now, and decide again." : error.message);
  }
  await refresh().catch((error) => tell(error.message));
  turned();
}

async function showHistory() {
  const { revisions } = await (await asOperator("admin/beta/history?limit=20")).json();
  $("history").tBodies[0].replaceChildren(...revisions.map((row) => {
    const line = element("tr"), changes = row.changes.join(", ") || "nothing changed";
    for (const text of [row.revision, `${row.at.slice(0, 19)}Z`, row.who, `${row.action}: ${changes}`, row.reason])
      line.append(element("td", text));
    const cell = element("td"), button = element("button", "Roll back to this", { type: "button" });
    button.disabled = row.revision === state.revision;
    button.onclick = () => {
      const reason = prompt(`Go back to the settings of revision ${row.revision}? Say why:`);
      if (reason) act(() => write("POST", "admin/beta/rollback", { revision: row.revision, reason }));
    };
    cell.append(button);
    line.append(cell);
    return line;
  }));
}

// The least bound in seconds that so large a share of the classifications stayed within.
function quantile(values, share) {
  const buckets = Object.entries(values)
    .map(([key, count]) => [/^tureen_request_seconds_bucket\{le="([^"]*)",route="\/classify"\}/.exec(key)?.[1], count])
    .filter(([bound]) => bound !== undefined)
    .map(([bound, count]) => [bound === "+Inf" ? Infinity : Number(bound), count])
    .sort((one, other) => one[0] - other[0]);
  const all = buckets.at(-1)?.[1];
  return all ? buckets.find(([, count]) => count >= share * all)[0] : null;
}

function rules() {
  const told = [state.clients_may_choose ? `may choose β ${state.beta_min} to ${state.beta_max}` : "choose no β"];
  for (const [name, beta] of Object.entries(state.policies)) told.push(`policy ${name}: β ${beta}`);
  if (state.canary) told.push(`canary: ${percent(state.canary.share, 0)} at β ${state.canary.beta}`);
  return told.join("; ");
}

async function showLive() {
  const values = {}, at = performance.now();
  for (const line of (await (await asOperator("metrics")).text()).split("\n")) {
    const match = /^([a-z_]+)(\{[^}]*\})? (\S+)$/.exec(line);
    if (match) values[match[1] + (match[2] ?? "")] = Number(match[3]);
  }
  const sums = (name, key) => Object.entries(values).filter(([known]) => known.startsWith(name) && known.includes(key)).reduce((sum, [, value]) => sum + value, 0);
  const now = { at, values };
  if (before) {
    const seconds = (at - before.at) / 1000, rate = (key) => (values[key] - (before.values[key] ?? 0)) / seconds;
    const traffic = {};
    for (const key of Object.keys(values)) {
      const beta = /^tureen_classifications_total\{beta="([^"]*)"/.exec(key)?.[1];
      if (beta !== undefined) traffic[beta] = (traffic[beta] ?? 0) + rate(key);
    }
    const total = Object.values(traffic).reduce((sum, one) => sum + one, 0);
    showBars($("traffic"), Object.entries(traffic).sort().map(([beta, one]) => [`β ${beta}`, total ? one / total : 0, one.toFixed(1)]));
  }
  before = now;
  const agree = sums("tureen_mode_comparisons_total", '"agree"'), disagree = sums("tureen_mode_comparisons_total", '"disagree"');
  const latency = [0.5, 0.99].map((share) => quantile(values, share));
  const rows = [
    ["Expected queue", `${(1000 * (values.tureen_expected_queue_seconds ?? 0)).toFixed(1)} ms`],
    ["Latency", latency[0] === null ? "no request yet" : `p50 within ${1000 * latency[0]} ms, p99 within ${1000 * latency[1]} ms, since the start`],
    ["Modes disagree", agree + disagree ? `${percent(disagree / (agree + disagree))} of ${agree + disagree}; a signal, no detector` : "not sampled"],
    ["Clients", rules()],
    ["Workers", state.workers.map((one) => `${one.worker} at revision ${one.revision}, serves ${one.model ?? "nothing yet"}`).join("; ")],
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
$("file").onchange = () => show($("file").files[0]);
$("beta").oninput = follow;
$("dial").oninput = turned;
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") take(event.dataTransfer.files[0]);
  });
}
document.addEventListener("paste", (event) => take(event.clipboardData.files[0]));

function take(file) {
  if (!file || $("try").hidden) return;
  $("file").value = ""; // it would go on naming the file chosen before
  show(file);
}

new ResizeObserver(() => {
  if (!sweep || $("figure").hidden || $("curve").clientWidth === width) return;
  drawCurve();
  follow();
}).observe($("figure"));
$("sign-in").onsubmit = (event) => {
  event.preventDefault();
  token = $("token").value.trim();
  $("token").value = "";
  signIn();
};
$("change").onsubmit = (event) => {
  event.preventDefault();
  const beta = Number($("dial").value), ttl = Number($("ttl").value);
  if (!confirm(`Change the default β to ${beta}?\n${$("promise").textContent}`)) return;
  act(() => write("PUT", "admin/beta", { default_beta: beta, reason: $("reason").value, ...(ttl ? { ttl_s: ttl } : {}) }));
};

async function showModel() {
  model = await (await ask("ui/model")).json();
  $("model").textContent = `${model.name} ${model.version}`;
  $("accuracy").tBodies[0].replaceChildren(...model.accuracy.map((row) => {
    const line = element("tr");
    for (const text of [row.beta, interval(row.clean), interval(row.robust), row.n]) line.append(element("td", text));
    return line;
  }));
  const row = model.accuracy[0];
  $("honest").textContent = row
    ? `Robust accuracy is empirical: measured white-box on the very soup of each row under ${row.attack}, ε = ${row.epsilon_255}/255, with 95 % intervals. It is no guarantee, and says nothing of other attacks.`
    : "Nothing was measured for this model.";
}

try {
  await showModel();
  $("operator").hidden = !model.is_operators;
  $("try").hidden = model.is_operators || !model.has_two_tokens || !model.clients_may_choose;
  if (model.is_operators && token) await signIn();
} catch (error) {
  tell(error.message);
}
document.body.dataset.loaded = "true";
