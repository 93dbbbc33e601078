// The first page: asks the API each second and shows what it says. All text from the API goes into text nodes, never into markup.

import { draw } from "/picture.js";

const POLL_MS = 1000;
const ANSWER_MS_MAX = 5000;
const EVENTS_SHOWN_MAX = 100;
const SAMPLES_MAX = 90;

const byId = (id) => document.getElementById(id);
const state = { token: null, status: null, seenAt: 0, lastEvent: null, events: [], samples: [], selected: null, timer: null };

class Refused extends Error {}

async function ask(path) {
  const stop = new AbortController();
  const timer = setTimeout(() => stop.abort(), ANSWER_MS_MAX);
  try {
    const answer = await fetch(`/api/v1${path}`, { headers: { Authorization: `Bearer ${state.token}` }, signal: stop.signal, cache: "no-store" });
    if (answer.status === 401 || answer.status === 403) throw new Refused();
    if (!answer.ok) throw new Error(`the panel answered ${answer.status}`);
    return await answer.json();
  } finally {
    clearTimeout(timer);
  }
}

// ---- the token: from the address's fragment, kept for this tab alone

function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    sessionStorage.setItem("token", given);
    history.replaceState(null, "", location.pathname);
  }
  return given ?? sessionStorage.getItem("token");
}

function signIn(error) {
  clearTimeout(state.timer);
  state.token = null;
  sessionStorage.removeItem("token");
  byId("live").hidden = true;
  byId("sign-in").hidden = false;
  byId("sign-out").hidden = true;
  byId("clock").textContent = "";
  verdict("unknown", "Not signed in");
  byId("sign-in-error").hidden = !error;
  byId("sign-in-error").textContent = error ?? "";
  byId("token").focus();
}

function begin(token) {
  Object.assign(state, { token, status: null, lastEvent: null, events: [], samples: [] });
  byId("sign-in").hidden = true;
  byId("sign-out").hidden = false;
  poll();
}

// ---- polling

async function poll() {
  const token = state.token;
  clearTimeout(state.timer);
  try {
    const [status, events] = await Promise.all([
      ask("/status"),
      ask(state.lastEvent === null ? `/events?limit=${EVENTS_SHOWN_MAX}` : `/events?after=${state.lastEvent}&limit=1000`),
    ]);
    if (token !== state.token) return;
    sessionStorage.setItem("token", token);
    Object.assign(state, { status, seenAt: performance.now() });
    byId("live").hidden = false;
    byId("stale").hidden = true;
    document.body.classList.remove("is-stale");
    show(status);
    showEvents(events.items);
  } catch (error) {
    if (token !== state.token) return;
    if (error instanceof Refused) return signIn("The panel does not know this token.");
    const age = Math.round((performance.now() - state.seenAt) / 1000);
    document.body.classList.add("is-stale");
    byId("stale").hidden = false;
    byId("live").hidden = false;
    byId("stale").textContent = state.status ? `The panel does not answer. What you see is ${age} s old; sites are served all the same.` : "The panel does not answer.";
    verdict("unknown", "The panel does not answer");
  }
  state.timer = setTimeout(poll, document.hidden ? POLL_MS * 5 : POLL_MS);
}

// ---- showing

const nodesOf = (status, kinds) => status.clusters.filter((cluster) => kinds.includes(cluster.kind)).flatMap((cluster) => cluster.nodes);

function verdict(kind, text) {
  const place = byId("verdict");
  place.dataset.state = kind;
  if (place.textContent !== text) place.textContent = text;
}

function judge(status) {
  const nodes = status.clusters.flatMap((cluster) => cluster.nodes);
  const are = (kind) => nodes.filter((node) => node.state === kind).map((node) => node.server);
  const list = (names) => (names.length > 3 ? `${names.length} nodes are` : `${names.join(", ")} ${names.length > 1 ? "are" : "is"}`);
  if (nodes.length === 0) return ["unknown", "No nodes yet"];
  const leaving = nodes.filter((node) => node.leaving).map((node) => node.server);
  for (const [kind, word] of [["down", "down"], ["overloaded", "overloaded"], ["unknown", "not heard of"], ["leaving", "leaving"], ["drained", "drained"]]) {
    const names = kind === "leaving" ? leaving : are(kind).filter((name) => kind !== "drained" || !leaving.includes(name));
    if (names.length > 0) return [kind === "leaving" ? "drained" : kind, `${list(names)} ${word}`];
  }
  for (const cluster of status.clusters) {
    const moving = Object.entries(cluster.grants ?? {}).find(([, grant]) => grant.moving_to);
    if (moving) return ["overloaded", `${moving[0]} of ${cluster.name} move from ${moving[1].holder} to ${moving[1].moving_to}`];
  }
  const troubled = nodes.filter((node) => (node.problems ?? []).length > 0).map((node) => node.server);
  if (troubled.length > 0) return ["overloaded", `${troubled.length > 3 ? `${troubled.length} nodes` : troubled.join(", ")} ${troubled.length > 1 ? "have" : "has"} a problem`];
  const free = status.free_servers.length;
  return ["up", `All ${nodes.length} nodes are up${free > 0 ? ` · ${free} free ${free > 1 ? "servers" : "server"}` : ""}`];
}

const number = (value) => (value >= 100 ? Math.round(value).toLocaleString("en") : (Math.round(value * 10) / 10).toString());

function show(status) {
  verdict(...judge(status));
  const serving = nodesOf(status, ["web", "mail"]);
  const rate = serving.reduce((sum, node) => sum + (node.load?.requests_per_second ?? 0), 0);
  state.samples.push(rate);
  state.samples.splice(0, state.samples.length - SAMPLES_MAX);
  byId("rate").textContent = number(rate);
  spark(state.samples);
  const inService = serving.filter((node) => node.state === "up" || node.state === "overloaded").length;
  byId("serving").replaceChildren(String(inService), small(` of ${serving.length}`));
  byId("connections").textContent = serving.reduce((sum, node) => sum + (node.load?.connections ?? 0), 0).toLocaleString("en");
  byId("sites").textContent = status.counts.sites.toLocaleString("en");
  byId("accounts").textContent = status.counts.accounts.toLocaleString("en");
  byId("clock").textContent = new Date(status.at).toLocaleTimeString("en-GB");
  byId("empty").hidden = status.counts.servers > 0;
  byId("frame").hidden = status.counts.servers === 0;
  showFree(status.free_servers);
  redraw();
  if (state.selected) fill(state.selected);
}

/** Servers that belong to no cluster: spare ones, and those that have left. */
function showFree(servers) {
  byId("free").hidden = servers.length === 0;
  const said = servers.map((free) => `${free.server} (${free.kind}${free.joined ? (free.connected ? "" : ", not connected") : ", not joined"})`);
  byId("free-list").textContent = said.join(", ");
}

/** How far a node is that leaves its cluster. */
function leaves({ flows, left_s }) {
  const open = flows === null ? "its connections are being counted" : `${flows} ${flows === 1 ? "connection is" : "connections are"} open`;
  return `leaving: ${open}; it leaves within ${left_s} s`;
}

function small(text) {
  const element = document.createElement("small");
  element.textContent = text;
  return element;
}

function redraw() {
  if (!state.status || byId("frame").hidden) return;
  const svg = byId("picture");
  draw(svg, state.status, Math.max(300, svg.parentElement.clientWidth - 2), (server) => {
    state.selected = server;
    fill(server);
    byId("details").showModal();
  });
}

function spark(samples) {
  const top = Math.max(1, ...samples) * 1.25;
  const points = samples.map((value, at) => `${(160 * (SAMPLES_MAX - samples.length + at)) / (SAMPLES_MAX - 1)} ${40 - (36 * value) / top}`);
  const [area, line] = byId("spark").children;
  line.setAttribute("d", `M${points.join("L")}`);
  const first = (160 * (SAMPLES_MAX - samples.length)) / (SAMPLES_MAX - 1);
  area.setAttribute("d", `M${first} 40L${points.join("L")}L160 40Z`);
}

// ---- one node's details

/** What only this node of its cluster may do. */
function holds(cluster, server) {
  const held = Object.entries(cluster.grants ?? {}).filter(([, grant]) => grant.holder === server);
  return held.map(([right, grant]) => (grant.moving_to ? `${right} (moving to ${grant.moving_to})` : right)).join(", ");
}

/** What waits in a mail queue. */
function queued(count) {
  if (!count) return "can't be counted now";
  const { messages, held } = count;
  const all = `${messages.toLocaleString("en")} ${messages === 1 ? "message waits" : "messages wait"}`;
  return held > 0 ? `${all}, ${held.toLocaleString("en")} of them held` : all;
}

function fill(server) {
  for (const cluster of state.status.clusters) {
    const node = cluster.nodes.find((node) => node.server === server);
    if (!node) continue;
    byId("details-title").textContent = `${server} · ${node.role} of ${cluster.name}`;
    byId("details-why").dataset.state = node.state;
    byId("details-why").textContent = node.leaving ? leaves(node.leaving) : node.why ? `${node.state}: ${node.why}` : node.state;
    byId("details-problems").replaceChildren(...(node.problems ?? []).map((text) => element("li", text)));
    const load = node.load;
    const rows = [
      ["Address", node.address],
      ["Weight", node.weight],
      ["Share of traffic", node.share_percent === null ? null : `${number(node.share_percent)} %`],
      ["Connections through the balancer", node.flows],
      ["Requests", load && `${number(load.requests_per_second)} a second, ${load.requests_total.toLocaleString("en")} in all, ${load.errors_total.toLocaleString("en")} errors`],
      ["Gets of its weight", load && `${load.score_percent} %`],
      ["Pressure", load && `CPU ${number(load.cpu_pressure_percent)} %, memory ${number(load.memory_pressure_percent)} %, I/O ${number(load.io_pressure_percent)} %`],
      ["Alone has", holds(cluster, server)],
      ["Accounts awake", load?.accounts_awake],
      ...(node.queues ?? []).map(({ of, count }) => [of === server ? "Queue" : `Queue of ${of}`, queued(count)]),
      ["As it should be", node.converged ? "yes" : "no"],
      ["Generation", node.generation],
      ["Joined", node.joined ? "yes" : "not yet"],
      ["Last heard of", node.last_seen_s === null ? "never" : `${node.last_seen_s} s ago`],
      ["Agent", node.version],
      ...Object.entries(node.versions ?? {}),
    ];
    const shown = rows.filter(([, value]) => value !== null && value !== undefined && value !== "");
    byId("details-list").replaceChildren(...shown.flatMap(([key, value]) => [element("dt", key), element("dd", String(value))]));
    return;
  }
}

function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

// ---- events

const MARKS = { info: "i", warning: "▲", error: "✕" };

function showEvents(events) {
  if (events.length === 0 && state.lastEvent !== null) return;
  state.lastEvent = events.at(-1)?.id ?? state.lastEvent ?? 0;
  state.events.push(...events);
  state.events.splice(0, state.events.length - EVENTS_SHOWN_MAX);
  const rows = [...state.events].reverse().map(eventRow);
  byId("events").replaceChildren(...(rows.length ? rows : [element("li", "Nothing has happened yet.", { class: "none" })]));
  byId("events-note").textContent = rows.length ? "newest first" : "";
}

function eventRow(event) {
  const row = element("li", "", { "data-severity": event.severity });
  const text = element("span", event.text, { class: "text" });
  text.append(element("span", event.topic, { class: "topic" }));
  const at = element("time", new Date(event.at).toLocaleTimeString("en-GB"), { class: "at", datetime: event.at, title: event.at });
  row.append(element("span", MARKS[event.severity] ?? "·", { class: "mark", title: event.severity }), at, element("span", event.server, { class: "who" }), text);
  if (event.detail) {
    const details = document.createElement("details");
    details.append(element("summary", "more"), element("pre", event.detail));
    row.append(details);
  }
  return row;
}

// ---- beginning

byId("sign-in-form").addEventListener("submit", (event) => {
  event.preventDefault();
  begin(byId("token").value.trim());
  byId("token").value = "";
});
byId("sign-out").addEventListener("click", () => signIn());
byId("details").addEventListener("close", () => (state.selected = null));
document.addEventListener("visibilitychange", () => document.hidden || !state.token || poll());
new ResizeObserver(redraw).observe(byId("frame"));
window.addEventListener("hashchange", () => {
  const token = takeToken();
  if (token && token !== state.token) begin(token);
});

const token = takeToken();
if (token) begin(token);
else signIn();
