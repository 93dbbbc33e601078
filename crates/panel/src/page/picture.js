// The picture: who sends requests to whom, drawn as SVG from the status. Wide: from left to right; narrow: from top to bottom.
//
// `scene` makes a list of plain items out of the status; `draw` keeps one SVG element for each item's key and updates it, so that what
// moves goes on moving.

const NS = "http://www.w3.org/2000/svg";
const WIDE_MIN = 860;
const GAP = 10;
const HEAD = 34;
const PAD = 12;

// ---- from the status to boxes with nodes

function parts(status) {
  const box = (cluster, extra) => ({ key: `cluster:${cluster.name}`, name: cluster.name, note: cluster.kind, nodes: cluster.nodes, cluster, ...extra });
  const serving = status.clusters.filter((cluster) => cluster.kind === "web" || cluster.kind === "mail");
  // One port is named; several of one address are counted, or eight of them would fill the picture.
  const addresses = (services) => {
    const ports = new Map();
    for (const { external } of services) {
      const [address, port] = external.split(":");
      ports.set(address, [...(ports.get(address) ?? []), port]);
    }
    return [...ports].map(([address, ports]) => (ports.length === 1 ? `${address}:${ports[0]}` : `${ports.length} × ${address}`)).join("  ");
  };
  const external = (name) => status.balancers.find((balancer) => balancer.name === name)?.services ?? [];
  const balancers = status.clusters.filter((cluster) => cluster.kind === "balancer");
  const stores = status.clusters.filter((cluster) => cluster.kind === "nas");
  const keptBy = (cluster) => status.shares.filter((share) => share.nas === cluster.name);
  const loose = status.shares.filter((share) => !share.nas && share.clusters.length > 0);
  return {
    balancers: balancers.map((cluster) => box(cluster, { note: addresses(external(cluster.name)) || "balancer" })),
    serving: serving.map((cluster) => box(cluster, { note: cluster.logical_servers.length ? `serves ${cluster.logical_servers.join(", ")}` : cluster.kind })),
    stores: [
      ...stores.map((cluster) => box(cluster, { note: keptBy(cluster).map((share) => share.name).join(", ") || "no shares" })),
      ...loose.map((share) => ({ key: `share:${share.name}`, name: share.name, note: "local share", nodes: [], share })),
    ],
  };
}

const cardHeight = (box) => (box.nodes.length > 6 ? 46 : 78);

function boxHeight(box, columns) {
  const rows = Math.ceil(box.nodes.length / columns);
  return HEAD + Math.max(0, rows * (cardHeight(box) + GAP) - GAP) + (rows ? PAD : 4);
}

/** What a node of a mail cluster does, in words; nothing for others. */
function mailWork(cluster, node) {
  if (cluster.kind !== "mail") return null;
  const mailboxes = cluster.grants?.mailboxes;
  const opens = mailboxes?.holder === node.server && !mailboxes.moving_to;
  const queues = (node.queues ?? []).map((queue) => queue.count);
  if (queues.length === 0) return opens ? "opens mailboxes, takes mail" : "takes mail";
  const sum = queues.every(Boolean) ? queues.reduce((sum, count) => sum + count.messages, 0).toLocaleString("en") : "?";
  const queued = `${sum} queued`;
  return opens ? `${queued} · mailboxes` : queued;
}

/** Places a box and its nodes; returns the items and remembers where each node is. */
function place(box, x, y, width, columns, places) {
  const height = cardHeight(box);
  const cardWidth = (width - 2 * PAD - (columns - 1) * GAP) / columns;
  const items = [{ kind: "box", key: box.key, x, y, width, height: boxHeight(box, columns), name: box.name, note: box.note }];
  places.set(box.key, { x, y, width, height: boxHeight(box, columns) });
  box.nodes.forEach((node, at) => {
    const spot = { x: x + PAD + (at % columns) * (cardWidth + GAP), y: y + HEAD + Math.floor(at / columns) * (height + GAP), width: cardWidth, height };
    places.set(`node:${node.server}`, spot);
    items.push({ kind: "node", key: `node:${node.server}`, node: { ...node, mailWork: mailWork(box.cluster, node) }, dense: height < 60, ...spot });
  });
  return items;
}

function scene(status, width) {
  const wide = width >= WIDE_MIN;
  const all = parts(status);
  const places = new Map();
  const { items, height } = wide ? wideScene(all, status, width, places) : narrowScene(all, status, width, places);
  // What is painted later lies above: boxes, then what flows between them, then the nodes.
  const boxes = items.filter((item) => item.kind === "box");
  return { items: [...boxes, ...lines(all, status, places, wide), ...items.filter((item) => item.kind !== "box")], height };
}

function wideScene(all, status, width, places) {
  const [clientsWidth, margin] = [116, 14];
  const columns = [all.balancers, all.serving, all.stores].filter((column) => column.length > 0);
  const gutter = Math.min(120, Math.max(56, width * 0.085));
  const boxWidth = (width - clientsWidth - 2 * margin - gutter * columns.length) / Math.max(1, columns.length);
  const tall = (column) => column.reduce((sum, box) => sum + boxHeight(box, 1) + 16, -16);
  const inner = Math.max(170, ...columns.map(tall));
  const items = [];
  columns.forEach((column, at) => {
    let y = 10 + (inner - tall(column)) / 2;
    const x = margin + clientsWidth + gutter + at * (boxWidth + gutter);
    for (const box of column) {
      items.push(...place(box, x, y, boxWidth, 1, places));
      y += boxHeight(box, 1) + 16;
    }
  });
  // As high as the middle of a lone node in its box.
  const clients = { x: margin, y: 10 + inner / 2 - 46 + (HEAD - PAD) / 2, width: clientsWidth, height: 92 };
  const panel = { x: margin, y: inner + 40, width: width - 2 * margin, height: 46 };
  items.push(end("clients", "clients", clients, "Clients", "the world", "clients"), panelItem(status, panel, places));
  places.set("clients", clients);
  return { items, height: panel.y + panel.height + 6 };
}

function narrowScene(all, status, width, places) {
  const margin = 8;
  const boxWidth = width - 2 * margin;
  const clients = { x: width / 2 - 70, y: 8, width: 140, height: 74 };
  places.set("clients", clients);
  const items = [end("clients", "clients", clients, "Clients", "the world", "clients")];
  let y = clients.y + clients.height + 48;
  for (const column of [all.balancers, all.serving, all.stores]) {
    for (const box of column) {
      const columns = box.nodes.length > 1 ? 2 : 1;
      items.push(...place(box, margin, y, boxWidth, columns, places));
      y += boxHeight(box, columns) + 14;
    }
    if (column.length) y += 42;
  }
  const panel = { x: margin, y: y - 30, width: boxWidth, height: 46 };
  items.push(panelItem(status, panel, places));
  return { items, height: panel.y + panel.height + 6 };
}

const end = (key, glyph, spot, name, note, label) => ({ kind: "end", key, glyph, name, note, label, ...spot });

function panelItem(status, spot, places) {
  places.set("panel", spot);
  const masters = status.clusters.flatMap((cluster) => cluster.nodes.filter((node) => node.role === "master"));
  const connected = masters.filter((node) => node.connected).length;
  const note = masters.length ? `connected with ${connected} of ${masters.length} masters · revision ${status.panel.revision}` : `revision ${status.panel.revision}`;
  return { kind: "end", key: "panel", glyph: "panel", name: "Panel", note, left: true, ...spot };
}

// ---- lines between them

function lines(all, status, places, wide) {
  const items = [];
  const join = (from, to, lane = 0.5) => (wide ? across(from, to, lane) : down(from, to));
  const known = new Map(status.clusters.flatMap((cluster) => cluster.nodes).map((node) => [node.server, node]));
  for (const balancer of all.balancers) {
    const services = status.balancers.find((found) => found.name === balancer.name)?.services ?? [];
    const front = places.get(`node:${balancer.cluster.master}`);
    const behind = new Set(services.map((service) => service.cluster));
    const nodes = all.serving.filter((box) => behind.has(box.name)).flatMap((box) => box.nodes);
    const total = nodes.reduce((sum, node) => sum + (node.load?.requests_per_second ?? 0), 0);
    const runs = known.get(balancer.cluster.master)?.state === "up" && nodes.some((node) => node.share_percent > 0);
    items.push({ kind: "flow", key: `flow:clients:${balancer.name}`, ...join(places.get("clients"), front), part: runs ? 1 : 0, rate: total, text: runs ? `${Math.round(total)}/s` : "–" });
    for (const node of nodes) {
      const part = node.state === "down" || node.share_percent === null ? 0 : node.share_percent / 100;
      const text = node.share_percent === null ? "–" : `${Math.round(node.share_percent)} %`;
      items.push({ kind: "flow", key: `flow:${balancer.name}:${node.server}`, ...join(front, places.get(`node:${node.server}`)), part, rate: node.load?.requests_per_second ?? 0, text: wide ? text : "" });
    }
  }
  for (const box of all.serving) {
    const share = status.shares.find((share) => share.name === box.cluster.share);
    const store = share && all.stores.find((store) => store.share === share || (share.nas && store.name === share.nas));
    if (!store) continue;
    const to = places.get(store.nodes.length ? `node:${store.cluster.master}` : store.key);
    const mounts = wide ? box.nodes.map((node) => [node, places.get(`node:${node.server}`)]) : [[null, places.get(box.key)]];
    for (const [node, from] of mounts) {
      const broken = node && node.connected && !node.in_service;
      items.push({ kind: "line", key: `mount:${box.name}:${node?.server ?? ""}`, path: join(from, wide ? to : places.get(store.key)).path, look: broken ? "mount broken" : "mount" });
    }
  }
  if (wide) {
    const panel = places.get("panel");
    for (const box of [...all.balancers, ...all.serving, ...all.stores.filter((store) => store.cluster)]) {
      const master = places.get(`node:${box.cluster.master}`);
      const [x, y] = [places.get(box.key).x - 13, master.y + master.height * 0.8];
      const path = `M${x} ${panel.y}V${y + 10}Q${x} ${y} ${x + 10} ${y}H${master.x}`;
      items.push({ kind: "line", key: `control:${box.name}`, path, look: known.get(box.cluster.master)?.connected ? "control on" : "control" });
    }
  }
  return items;
}

function across(from, to, lane) {
  const [x1, y1, x2, y2] = [from.x + from.width, from.y + from.height * 0.5, to.x, to.y + to.height * lane];
  const bend = Math.max(24, (x2 - x1) / 2);
  return { path: `M${x1} ${y1}C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}`, x: x1 + (x2 - x1) * 0.5, y: (y1 + y2) / 2 };
}

function down(from, to) {
  const [x1, y1, x2, y2] = [from.x + from.width / 2, from.y + from.height, to.x + to.width / 2, to.y];
  const bend = Math.max(14, (y2 - y1) / 2);
  return { path: `M${x1} ${y1}C${x1} ${y1 + bend} ${x2} ${y2 - bend} ${x2} ${y2}`, x: (x1 + x2) / 2, y: y1 + (y2 - y1) * 0.42 };
}

// ---- drawing: one element for each key

const elements = new WeakMap();

/** Draws the status into the SVG element at this width; `chosen` gets the name of a node that a person chooses. */
export function draw(svg, status, width, chosen) {
  const { items, height } = scene(status, width);
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("height", height);
  const present = elements.get(svg) ?? new Map();
  const kept = new Map();
  let before = null;
  for (const item of items) {
    const known = present.get(item.key);
    const drawn = known?.kind === item.kind ? known : { kind: item.kind, ...kinds[item.kind](item, chosen) };
    const next = before ? before.nextSibling : svg.firstChild;
    if (next !== drawn.element) svg.insertBefore(drawn.element, next);
    // After it is in its place: a text's width is known only there.
    drawn.update(item);
    before = drawn.element;
    kept.set(item.key, drawn);
  }
  while (before && before.nextSibling) before.nextSibling.remove();
  elements.set(svg, kept);
}

function make(name, attributes = {}, ...children) {
  const element = document.createElementNS(NS, name);
  set(element, attributes);
  element.append(...children);
  return element;
}

function set(element, attributes) {
  for (const [key, value] of Object.entries(attributes)) {
    if (element.getAttribute(key) !== String(value)) element.setAttribute(key, value);
  }
}

/** Puts a text into an element, cut with an ellipsis where it would be wider than `max`. */
function write(element, text, max) {
  if (element.dataset.text === `${text}|${max}`) return;
  element.dataset.text = `${text}|${max}`;
  element.textContent = text;
  if (!max || !element.isConnected) return;
  let length = text.length;
  while (length > 1 && element.getComputedTextLength() > max) {
    length -= Math.max(1, Math.floor(length * 0.08));
    element.textContent = `${text.slice(0, length)}…`;
  }
}

/** Puts a text into one element and, where it is too long and there is room, what is left into a second. */
function writeTwo(first, second, text, max, room) {
  write(first, text, max);
  const shown = first.textContent.length - 1;
  if (!room || !first.textContent.endsWith("…") || shown >= text.length) return write(second, "");
  const cut = text.lastIndexOf(" ", shown);
  if (cut < 1) return write(second, "");
  first.textContent = text.slice(0, cut);
  first.dataset.text = "";
  write(second, text.slice(cut + 1), max);
}

const GLYPHS = {
  up: ["M8 0a8 8 0 1 0 0 16A8 8 0 1 0 8 0z", "M4.6 8.4l2.4 2.4 4.4-5"],
  overloaded: ["M8 .6L16.4 15.4H-.4z", "M8 6v4M8 12.7v.1"],
  drained: ["M8 0a8 8 0 1 0 0 16A8 8 0 1 0 8 0z", "M6 5.2v5.6M10 5.2v5.6"],
  down: ["M2 0H14A2 2 0 0 1 16 2V14A2 2 0 0 1 14 16H2A2 2 0 0 1 0 14V2A2 2 0 0 1 2 0z", "M5 5l6 6M11 5l-6 6"],
  unknown: ["M8 .9a7.1 7.1 0 1 0 0 14.2A7.1 7.1 0 1 0 8 .9z", "M5.9 6.3a2.1 2.1 0 1 1 3 2c-.7.3-.9.7-.9 1.2M8 11.9v.1"],
};
const ENDS = {
  clients: "M-15 9a5 5 0 0 1 10 0M-10 1a3 3 0 1 0 0-6 3 3 0 0 0 0 6M5 9a5 5 0 0 1 10 0M10 1a3 3 0 1 0 0-6 3 3 0 0 0 0 6M-6.500 11a6.500 6.500 0 0 1 13 0M0 1.500a4 4 0 1 0 0-8 4 4 0 0 0 0 8",
  panel: "M-11-8H11V6H-11zM-5 10H5M0 6v4M-6-1l3-3 3 4 3-5 3 3",
};

const kinds = {
  box() {
    const [ground, name, note] = [make("rect", { rx: 12 }), make("text", { class: "box-name" }), make("text", { class: "box-note", "text-anchor": "end" })];
    const update = ({ x, y, width, height, name: title, note: text }) => {
      set(ground, { x, y, width, height });
      set(name, { x: x + PAD + 2, y: y + 22 });
      set(note, { x: x + width - PAD - 2, y: y + 22 });
      write(name, title, width * 0.4);
      write(note, text, width * 0.58 - 2 * PAD);
    };
    return { element: make("g", { class: "box" }, ground, name, note), update };
  },

  node(first, chosen) {
    const ground = make("rect", { class: "ground", rx: 9 });
    const stripe = make("path", { class: "stripe" });
    const glyph = make("g", {}, make("path", { class: "glyph-ground" }), make("path", { class: "glyph" }));
    const [name, state] = [make("text", { class: "name" }), make("text", { class: "state" })];
    const [line, rest] = [make("text", { class: "line" }), make("text", { class: "line" })];
    const [meter, level, label] = [make("rect", { class: "meter", rx: 3 }), make("rect", { class: "meter-fill", rx: 3 }), make("text", { class: "meter-label", "text-anchor": "end" })];
    const role = make("text", { class: "role" });
    const element = make("g", { class: "node", tabindex: 0, role: "button" }, ground, stripe, glyph, name, role, state, line, rest, meter, level, label);
    const choose = () => chosen(first.node.server);
    element.addEventListener("click", choose);
    element.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        choose();
      }
    });
    const update = ({ x, y, width, height, node, dense }) => {
      const compact = width < 190;
      const load = node.load;
      const busy = load ? 100 - load.score_percent : 0;
      set(element, { "data-state": node.state, "aria-label": spoken(node) });
      set(ground, { x, y, width, height });
      set(stripe, { d: `M${x + 9} ${y}H${x + 4}Q${x} ${y} ${x} ${y + 9}V${y + height - 9}Q${x} ${y + height} ${x + 4} ${y + height}H${x + 4.5}V${y}z` });
      const [shape, sign] = GLYPHS[node.state];
      set(glyph, { transform: `translate(${x + 15} ${y + (dense ? 8 : 10)})` });
      set(glyph.children[0], { d: shape });
      set(glyph.children[1], { d: sign });
      set(name, { x: x + 38, y: y + (dense ? 21 : 23) });
      write(name, node.server, compact ? width - 46 : width * 0.42);
      const nameWidth = name.isConnected ? name.getComputedTextLength() : 0;
      set(role, compact ? { x: x + 15, y: y + height - 12 } : { x: x + 44 + nameWidth, y: y + (dense ? 21 : 23) });
      write(role, compact ? node.role : `· ${node.role}`, 70);
      set(state, { x: x + width - 12, y: compact ? y + height - 11 : y + (dense ? 21 : 23) });
      write(state, node.leaving ? "leaving" : node.state, 90);
      set(line, { x: x + 15, y: y + (dense ? 38 : 46) });
      set(rest, { x: x + 15, y: y + 64 });
      writeTwo(line, rest, described(node, compact), width - 27, !load && !compact && !dense);
      const shows = Boolean(load) && !dense;
      for (const part of [meter, level, label]) part.toggleAttribute("hidden", !shows || compact);
      const space = width - 27 - 74;
      set(meter, { x: x + 15, y: y + height - 17, width: Math.max(10, space), height: 6 });
      set(level, { x: x + 15, y: y + height - 17, width: Math.max(3, (space * busy) / 100), height: 6, "data-level": busy >= 90 ? 2 : busy >= 50 ? 1 : 0 });
      set(label, { x: x + width - 12, y: y + height - 10.5 });
      write(label, `load ${busy} %`);
    };
    return { element, update };
  },

  end() {
    const ground = make("rect", { class: "ground", rx: 12 });
    const [glyph, name, note] = [make("path", { class: "glyph-end" }), make("text", { class: "name" }), make("text", { class: "line" })];
    const element = make("g", { class: "end" }, ground, glyph, name, note);
    const update = ({ x, y, width, height, glyph: shape, name: title, note: text, left }) => {
      element.classList.toggle("left", Boolean(left));
      set(ground, { x, y, width, height });
      set(glyph, { d: ENDS[shape], transform: left ? `translate(${x + 28} ${y + height / 2 - 1})` : `translate(${x + width / 2} ${y + height * 0.32})` });
      set(name, left ? { x: x + 52, y: y + height / 2 + 5 } : { x: x + width / 2, y: y + height * 0.69 });
      set(note, left ? { x: x + 98, y: y + height / 2 + 5 } : { x: x + width / 2, y: y + height * 0.69 + 16 });
      write(name, title, width - 20);
      write(note, text, left ? width - 110 : width - 12);
    };
    return { element, update };
  },

  flow() {
    const [pipe, drops] = [make("path", { class: "pipe" }), make("path", { class: "drops" })];
    const [ground, text] = [make("rect", { class: "share-ground", rx: 9, height: 18, width: 46 }), make("text", { class: "share" })];
    const element = make("g", { class: "flow" }, pipe, drops, ground, text);
    const update = ({ path, x, y, part, rate, text: label }) => {
      const thick = 3 + 13 * part;
      element.classList.toggle("idle", part <= 0);
      set(pipe, { d: path });
      set(drops, { d: path });
      if (part > 0) {
        set(pipe, { "stroke-width": thick.toFixed(1) });
        set(drops, { "stroke-width": Math.max(2.6, thick * 0.42).toFixed(1) });
        // From a drop each three seconds, when nothing comes, to as fast as the eye follows.
        drops.style.animationDuration = `${(3 / (1 + Math.log10(1 + rate))).toFixed(1)}s`;
      }
      // A narrow picture has the shares in the nodes themselves.
      ground.toggleAttribute("hidden", !label);
      set(ground, { x: x - 23, y: y - 9 });
      set(text, { x, y: y + 4.2 });
      write(text, label);
    };
    return { element, update };
  },

  line() {
    const element = make("path", {});
    return { element, update: ({ path, look }) => set(element, { d: path, class: look }) };
  },
};

function described(node, compact) {
  if (node.state === "down" || node.state === "unknown") return node.why || "no news";
  if ((node.problems ?? []).length > 0) return node.problems[0];
  if (!node.load) return node.why || "";
  if (node.mailWork) return compact ? node.mailWork.split(" · ")[0] : node.mailWork;
  const load = node.load;
  if (node.share_percent === null && load.requests_total === 0) return node.converged ? "as it should be" : "being set up";
  const rate = load.requests_per_second;
  if (compact) return `${Math.round(rate)}/s${node.share_percent === null ? "" : ` · ${Math.round(node.share_percent)} %`}`;
  return `${rate >= 10 ? Math.round(rate) : Math.round(rate * 10) / 10} requests/s · ${load.accounts_awake} awake`;
}

function spoken(node) {
  const rate = node.load ? `, ${Math.round(node.load.requests_per_second)} requests a second` : "";
  const share = node.share_percent === null ? "" : `, ${Math.round(node.share_percent)} percent of the traffic`;
  return `${node.server}, ${node.role}, ${node.leaving ? "leaving" : node.state}${node.why ? `, ${node.why}` : ""}${rate}${share}`;
}
