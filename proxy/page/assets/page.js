'use strict';
// Everything shown comes as text from the server and goes into text nodes: names of pods are other people's words.

const byId = id => document.getElementById(id);
const maxFlows = 500;
const state = { flows: [], traffic: { edges: [], policies: [] }, possible: { edges: [] }, agents: [], explains: false, paused: false, filter: '' };

function element(tag, attributes, ...children) {
  const e = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) e.setAttribute(name, value);
  e.append(...children);
  return e;
}

function drawing(tag, attributes, ...children) {
  const e = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes || {})) e.setAttribute(name, value);
  e.append(...children);
  return e;
}

const plural = (n, word) => `${n.toLocaleString('en')} ${word}${n === 1 ? '' : 's'}`;
const kindOf = verdict => verdict.startsWith('would') ? 'would' : verdict;
const partyText = p => p.namespace ? `${p.namespace}/${p.name}` : p.name;
const sideText = s => s.pod ? `${s.namespace}/${s.pod}` : s.ip;
const portText = f => f.dst.port ? `${f.dst.port}/${f.proto.toUpperCase()}` : f.proto.toUpperCase();
const shortPolicy = name => name.replace(/^NetworkPolicy\//, '');

// matches tells whether all words of the filter are in the text.
const matches = text => state.filter.split(/\s+/).every(word => text.toLowerCase().includes(word));

function name(namespace, name) {
  const span = element('span', { class: 'wrap' });
  if (namespace) span.append(element('span', { class: 'ns' }, namespace + '/'));
  span.append(name);
  return span;
}

// --- figures and notices

function showFigures() {
  const sum = kind => state.traffic.edges.reduce((n, e) => n + (kindOf(e.verdict) === kind ? e.count : 0), 0);
  const idle = state.agents.filter(a => a.notReady);
  const set = (id, figure, note, alarm) => {
    byId('n-' + id).textContent = figure.toLocaleString('en');
    byId('s-' + id).textContent = note;
    byId('s-' + id).classList.toggle('alarm', Boolean(alarm));
  };
  set('agents', state.agents.length, !state.agents.length ? 'none is asked' : idle.length ? `${idle.length} not ready` : 'all enforce', idle.length);
  const problems = {};
  for (const a of state.agents) for (const [policy, list] of Object.entries(a.problems || {})) problems[policy] = list;
  const bad = Object.keys(problems).length;
  set('policies', Math.max(0, ...state.agents.map(a => a.policies || 0)), !state.agents.length ? 'without an agent' : bad ? `${bad} with problems` : 'all understood', bad);
  const allowed = state.traffic.edges.filter(e => e.verdict === 'allow');
  set('allowed', sum('allow'), `on ${plural(allowed.length, 'way')} between workloads`);
  const denied = state.traffic.edges.filter(e => e.verdict === 'deny');
  const last = denied.reduce((t, e) => e.last > t ? e.last : t, '');
  set('denied', sum('deny'), last ? `last at ${new Date(last).toLocaleTimeString('en-GB')}` : 'none since the agents started');
  const notices = idle.map(a => `${a.node}: ${a.notReady}`);
  for (const [policy, list] of Object.entries(problems)) notices.push(`${policy}: ${list.join('; ')}`);
  if (state.possible.unknown) notices.push(`What policy allows is not known: ${state.possible.unknown}`);
  if (state.possible.leftOut) notices.push(`What policy allows is not shown for ${plural(state.possible.leftOut, 'namespace')}: there are too many.`);
  if (state.possible.sampled) notices.push('What policy allows is shown for some pods of each party: they have more labels than can be looked at.');
  if (state.traffic.leftOut) notices.push(`There is more than fits: ${plural(state.traffic.leftOut, 'observation')} left out of the graph.`);
  byId('notices').replaceChildren(...notices.map(text => element('li', {}, text)));
}

// --- graph: who asks on the left, what is asked for on the right

const rowHeight = 30, spaceHeight = 26, maxRows = 60;

// column places rows below headings of their namespaces, and returns the height.
function column(rows) {
  const order = [...rows.values()].sort((a, b) => {
    const outside = (a.party.namespace ? 0 : 1) - (b.party.namespace ? 0 : 1);
    return outside || a.sort.localeCompare(b.sort, 'en', { numeric: true });
  });
  const headings = [];
  let y = 0, space = null;
  for (const row of order.slice(0, maxRows)) {
    const own = row.party.namespace || 'outside and nodes';
    if (own !== space) {
      y += space === null ? 0 : 8;
      headings.push({ text: own, y: y + 16 });
      y += spaceHeight;
      space = own;
    }
    row.y = y + rowHeight / 2;
    y += rowHeight;
  }
  return { headings, rows: order.slice(0, maxRows), height: y, more: Math.max(0, order.length - maxRows) };
}

function shorten(text, letters) {
  return text.length > letters ? text.slice(0, letters - 1) + '…' : text;
}

const every = 'every port', maxSpans = 3;

// possibleEdges are what policy says of connections of which nothing was seen: one for each range of ports.
function possibleEdges(seen) {
  if (!byId('possible').querySelector('input').checked) return [];
  const known = new Set(), pairs = new Set();
  for (const e of seen) {
    const pair = `${partyText(e.from)} ${partyText(e.to)}`;
    known.add(`${pair} ${e.port} ${e.verdict}`);
    pairs.add(`${pair} ${e.verdict}`);
  }
  const list = [];
  for (const { from, to, ports = [], all, part } of state.possible.edges) {
    const pair = `${partyText(from)} ${partyText(to)}`, edge = { from, to, part, possible: true };
    const whole = verdict => { if (!pairs.has(`${pair} ${verdict}`)) list.push({ ...edge, port: every, verdict }); };
    if (all) whole('allow');
    else if (!ports.length) whole('deny');
    else if (ports.length > maxSpans) list.push({ ...edge, port: plural(ports.length, 'range'), verdict: 'allow', ports });
    else for (const port of ports) if (!known.has(`${pair} ${port} allow`)) list.push({ ...edge, port, verdict: 'allow' });
  }
  return list;
}

const kindOfEdge = e => e.possible ? (e.verdict === 'allow' ? 'may' : 'maynot') : kindOf(e.verdict);
const verdictText = e => e.possible ? (e.verdict === 'deny' ? 'may not' : e.part ? 'some may' : 'may') : e.verdict;
const countText = e => e.possible ? (e.ports ? e.ports.join(', ') : 'not seen') : e.count.toLocaleString('en');

function showGraph() {
  const all = [...state.traffic.edges, ...possibleEdges(state.traffic.edges)];
  const edges = all.filter(e => matches(`${partyText(e.from)} ${partyText(e.to)} ${e.port} ${verdictText(e)}`));
  const box = byId('graph');
  showEdgeTable(edges);
  if (!edges.length) {
    box.replaceChildren(element('p', { class: 'empty' }, state.filter ? 'Nothing matches the filter.' :
      'Nothing yet. Connections of pods that a policy isolates show up here.'));
    return;
  }
  const from = new Map(), to = new Map();
  for (const e of edges) {
    const f = partyText(e.from), t = `${partyText(e.to)} ${e.port}`;
    if (!from.has(f)) from.set(f, { party: e.from, sort: f, key: 'f ' + f });
    if (!to.has(t)) to.set(t, { party: e.to, port: e.port, sort: t, key: 't ' + t });
  }
  const left = column(from), right = column(to);
  const width = Math.max(620, box.clientWidth), height = Math.max(left.height, right.height) + 6;
  const boxWidth = Math.min(250, width * 0.3), rightWidth = Math.min(320, width * 0.36), start = boxWidth, end = width - rightWidth;
  const shift = side => (height - side.height) / 2;
  const svg = drawing('svg', {
    viewBox: `0 0 ${width} ${height}`, role: 'img',
    'aria-label': `${plural(from.size, 'workload')} and addresses to ${plural(to.size, 'port')}; the table below says the same`,
  });
  const lines = drawing('g', {});
  const order = ['maynot', 'may', 'deny', 'would', 'allow']; // what is drawn last is on top
  const sorted = edges.slice().sort((a, b) => order.indexOf(kindOfEdge(a)) - order.indexOf(kindOfEdge(b)));
  for (const e of sorted) {
    const a = from.get(partyText(e.from)), b = to.get(`${partyText(e.to)} ${e.port}`);
    if (a.y === undefined || b.y === undefined) continue;
    const kind = kindOfEdge(e), offset = e.verdict === 'allow' ? -3 : 3;
    const y1 = a.y + shift(left) + offset, y2 = b.y + shift(right) + offset, bend = (end - start) * 0.45;
    const path = drawing('path', {
      class: kind, d: `M${start} ${y1} C${start + bend} ${y1} ${end - bend} ${y2} ${end} ${y2}`,
    }, drawing('title', {}, `${partyText(e.from)} → ${partyText(e.to)} ${e.port}: ${verdictText(e)} (${countText(e)})`));
    path.ends = [a.key, b.key];
    lines.append(path);
  }
  svg.append(lines);
  const place = (side, x, w) => {
    for (const h of side.headings) svg.append(drawing('text', { class: 'space', x: x + 2, y: h.y + shift(side) }, h.text));
    for (const row of side.rows) {
      const y = row.y + shift(side), g = drawing('g', { class: 'row' });
      g.append(drawing('rect', { class: 'box', x, y: y - 12.5, width: w, height: 25, rx: 7 }));
      g.append(drawing('text', { x: x + 12, y: y + 4.5 }, shorten(row.party.name, row.port ? 24 : 32)));
      if (row.port) g.append(drawing('text', { class: 'port', x: x + w - 12, y: y + 4.5, 'text-anchor': 'end' }, row.port));
      g.append(drawing('title', {}, row.sort));
      g.dataset.key = row.key;
      svg.append(g);
    }
  };
  place(left, 0.5, boxWidth - 0.5);
  place(right, end, rightWidth - 0.5);
  svg.addEventListener('pointerover', event => pick(svg, event.target.closest('g.row, path')));
  svg.addEventListener('pointerleave', () => pick(svg, null));
  box.replaceChildren(svg);
  const more = left.more + right.more;
  if (more) box.append(element('p', { class: 'empty' }, `${plural(more, 'row')} more: use the filter.`));
}

// pick brings out what belongs to a row or a line.
function pick(svg, target) {
  const row = target && target.dataset.key;
  const ends = new Set(target && target.ends || []);
  for (const path of svg.querySelectorAll('path')) {
    const picked = path === target || row !== undefined && row !== null && path.ends.includes(row);
    path.classList.toggle('picked', picked);
    if (picked) path.ends.forEach(e => ends.add(e));
  }
  for (const g of svg.querySelectorAll('g.row')) g.classList.toggle('picked', ends.has(g.dataset.key));
  svg.classList.toggle('picking', Boolean(target));
}

function showEdgeTable(edges) {
  byId('edges').tBodies[0].replaceChildren(...edges.map(e => element('tr', {},
    element('td', {}, name(e.from.namespace, e.from.name)), element('td', {}, name(e.to.namespace, e.to.name)),
    element('td', { class: 'mono' }, e.port), element('td', {}, element('span', { class: 'tag ' + kindOfEdge(e) }, verdictText(e))),
    element('td', { class: 'number' }, countText(e)))));
}

// --- policies

function showPolicies() {
  const rows = state.traffic.policies.filter(p => matches(p.name)).sort((a, b) => b.denied - a.denied || b.admits - a.admits);
  byId('no-policies').hidden = rows.length > 0;
  byId('policies').tBodies[0].replaceChildren(...rows.map(p => {
    const would = p.would ? [element('span', { class: 'sub' }, `${p.would.toLocaleString('en')} in audit`)] : [];
    return element('tr', {}, element('td', { class: 'wrap' }, shortPolicy(p.name)),
      element('td', { class: 'number' }, p.admits.toLocaleString('en')),
      element('td', { class: 'number' }, p.denied.toLocaleString('en'), ...would));
  }));
}

// --- denied flows

const flowText = f => [sideText(f.src), sideText(f.dst), f.src.ip, f.dst.ip, portText(f), f.reason, f.direction, f.verdict,
  f.node, ...f.policies].join(' ');

function flowRow(f) {
  const side = s => {
    const td = element('td', {}, s.pod ? name(s.namespace, s.pod) : element('span', { class: 'mono' }, s.ip));
    return td;
  };
  const to = side(f.dst);
  to.append(element('span', { class: 'sub mono' }, portText(f)));
  const from = side(f.src);
  from.append(element('span', { class: 'sub' }, 'seen on ' + f.node));
  const why = element('button', { type: 'button', 'aria-label': `Explain ${sideText(f.src)} to ${sideText(f.dst)}` }, 'Why?');
  why.addEventListener('click', () => {
    const form = byId('form');
    form.from.value = sideText(f.src);
    form.to.value = sideText(f.dst);
    form.port.value = portText(f);
    ask();
    byId('ask').scrollIntoView({ block: 'nearest' });
  });
  why.hidden = !state.explains;
  const kind = kindOf(f.verdict);
  return element('tr', {},
    element('td', { class: 'time' }, new Date(f.time).toLocaleTimeString('en-GB')), from, to,
    element('td', {}, element('span', { class: 'tag ' + kind }, kind === 'would' ? f.verdict : f.direction || f.verdict),
      element('span', { class: 'sub' }, f.reason)),
    element('td', { class: 'wrap' }, f.policies.map(shortPolicy).join(', ')),
    element('td', { class: 'number' }, f.count.toLocaleString('en')), element('td', {}, why));
}

function showFlows() {
  const rows = state.flows.filter(f => matches(flowText(f)));
  byId('no-flows').hidden = rows.length > 0;
  byId('no-flows').textContent = state.filter ? 'Nothing matches the filter.' : 'Nothing was denied lately.';
  byId('flows').tBodies[0].replaceChildren(...rows.map(flowRow));
}

let arrived = [];

// addFlow gathers what comes at once, and shows it before the next frame.
function addFlow(f) {
  if (!arrived.length) setTimeout(showArrived, 50);
  arrived.push(f);
}

function showArrived() {
  const fresh = arrived;
  arrived = [];
  state.flows = [...fresh.reverse(), ...state.flows];
  state.flows.sort((a, b) => b.time < a.time ? -1 : b.time > a.time ? 1 : 0);
  state.flows.length = Math.min(state.flows.length, maxFlows);
  if (state.paused) return;
  showFlows();
  const rows = byId('flows').tBodies[0].rows;
  for (let i = 0; i < Math.min(fresh.length, rows.length, 20); i++) rows[i].classList.add('new');
}

// --- explain

async function ask() {
  const form = byId('form'), answer = byId('answer');
  const query = new URLSearchParams({ output: 'text', from: form.from.value, to: form.to.value, port: form.port.value });
  const show = (text, kind) => answer.replaceChildren(element('pre', { class: kind }, text));
  try {
    const response = await fetch('page/explain?' + query);
    show((await response.text()).trim(), response.headers.get('Firstpacket-Verdict') || '');
  } catch (e) {
    show('No answer: ' + e.message, 'deny');
  }
}

// --- wiring

function showAll() {
  showFigures();
  showGraph();
  showPolicies();
  showFlows();
}

function live(text, kind) {
  byId('live').textContent = text;
  byId('live').className = 'pill ' + kind;
}

function connect() {
  const source = new EventSource('page/events');
  const on = (event, then) => source.addEventListener(event, e => then(JSON.parse(e.data)));
  on('hello', hello => {
    byId('title').textContent = hello.title;
    document.title = `firstpacket ${hello.title}`;
    state.explains = hello.explains;
    state.possible = { edges: [] };
    byId('possible').hidden = true;
    byId('ask').hidden = !hello.explains;
    state.flows = [];
    arrived = [];
    live('live', 'good');
    showFlows();
  });
  on('flow', addFlow);
  on('agents', agents => { state.agents = agents || []; showFigures(); });
  on('possible', possible => {
    state.possible = possible;
    byId('possible').hidden = !possible.edges || !possible.edges.length;
    state.possible.edges ||= [];
    showFigures();
    if (!state.paused) showGraph();
  });
  on('traffic', traffic => {
    state.traffic = traffic;
    showFigures();
    if (!state.paused) { showGraph(); showPolicies(); }
    document.documentElement.dataset.traffic = traffic.edges.length;
  });
  source.addEventListener('error', () => {
    live('no connection, trying again', 'bad');
    if (source.readyState === EventSource.CLOSED) setTimeout(connect, 3000);
  });
}

byId('filter').addEventListener('input', e => { state.filter = e.target.value.trim().toLowerCase(); showAll(); });
byId('possible').addEventListener('change', showGraph);
byId('form').addEventListener('submit', e => { e.preventDefault(); ask(); });
byId('pause').addEventListener('click', e => {
  state.paused = !state.paused;
  e.target.setAttribute('aria-pressed', state.paused);
  e.target.textContent = state.paused ? 'Go on' : 'Pause';
  if (!state.paused) showAll();
});
let resizing;
addEventListener('resize', () => { clearTimeout(resizing); resizing = setTimeout(showGraph, 100); });
connect();
