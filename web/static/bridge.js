/* The bridge as a picture: a switch with its ports, what hangs on each, what is red; below it what should hang there and
 * does not. Made of SVG elements, without any markup from text. One port has the tab stop, arrow keys go on from it. */

import { MARKS } from './inventory.js';

const NS = 'http://www.w3.org/2000/svg';
const LARGE = { width: 132, height: 56, most: 48 };  // with the user's name; up to so many ports
const SMALL = { width: 34, height: 34 };
const GAP = 6;
const EDGE = 14;
const CABLE = 34; // from what is above the switch to it
const HEAD = 40;  // the switch's own line of text

function make(name, attributes = {}, text = '') {
  const element = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.textContent = text;
  return element;
}

const cut = (text, letters) => ([...text].length > letters ? `${[...text].slice(0, letters - 1).join('')}…` : text);

export class BridgePicture {
  #host;
  #svg = make('svg', { role: 'group', 'aria-label': 'Ports of the bridge' });
  #cells = new Map(); // key -> <g>
  #order = [];        // keys, as arrow keys go
  #columns = 1;
  #current = null;    // the key with the tab stop
  #pointed = null;    // the key of the port whose words were given last
  #drawn = null;      // what was drawn last

  onChoose = () => {}; // (vmId)
  onPoint = () => {};  // (words): of the port that was pointed at, or had the focus, last; empty: it is not there any more

  constructor(host) {
    this.#host = host;
    host.append(this.#svg);
    this.#svg.addEventListener('keydown', (event) => this.#onKey(event));
    this.#svg.addEventListener('focusin', (event) => this.#point(event.target));
    this.#svg.addEventListener('pointerover', (event) => this.#point(event.target));
    this.#svg.addEventListener('click', (event) => this.#choose(event.target));
    new ResizeObserver(() => this.#drawn && this.show(this.#drawn)).observe(host);
  }

  /* picture: {bridge, uplink, broken, ports: [{key, number, vmId, tone, label, words}]} */
  show(picture) {
    this.#drawn = picture;
    const on = picture.ports.filter((port) => port.number);
    const off = picture.ports.filter((port) => !port.number);
    const width = Math.max(280, this.#host.clientWidth);
    const cell = picture.ports.length > LARGE.most ? SMALL : LARGE;
    this.#columns = Math.max(1, Math.floor((width - 2 * EDGE + GAP) / (cell.width + GAP)));
    const rows = (ports) => Math.ceil(ports.length / this.#columns);
    const heightOf = (ports) => rows(ports) * (cell.height + GAP);
    const top = 36 + CABLE;
    const switchHeight = HEAD + Math.max(heightOf(on), 20) + EDGE;
    const total = top + switchHeight + (off.length ? CABLE + heightOf(off) : 4);
    this.#svg.setAttribute('viewBox', `0 0 ${width} ${total}`);
    this.#svg.setAttribute('height', total);

    const parts = [...this.#above(picture, width), ...this.#box(picture, top, width, switchHeight)];
    if (off.length)
      parts.push(make('text', { x: EDGE, y: top + switchHeight + CABLE - 10, class: 'soft' }, 'Not on the bridge'));
    const had = this.#svg.contains(document.activeElement);
    const cells = new Map();
    this.#place(on, cell, top + HEAD, cells);
    this.#place(off, cell, top + switchHeight + CABLE, cells);
    this.#cells = cells;
    this.#order = [...cells.keys()];
    if (!cells.has(this.#current)) this.#current = this.#order[0] ?? null;
    for (const [key, { lastChild }] of cells) lastChild.setAttribute('tabindex', key === this.#current ? 0 : -1);
    // Cells that stay are the same elements: what has the focus keeps it.
    this.#svg.replaceChildren(...parts, ...cells.values());
    if (this.#pointed) this.onPoint(picture.ports.find(({ key }) => key === this.#pointed)?.words ?? '');
    if (had) cells.get(this.#current)?.lastChild.focus();
  }

  /* The way out. */
  #above({ uplink }, width) {
    const words = uplink ? `Outside by ${cut(uplink, 40)}` : 'No way to the outside';
    const tone = uplink ? 'good' : 'done';
    return [
      make('rect', { x: EDGE, y: 1, width: Math.min(260, width - 2 * EDGE), height: 34, rx: 6, class: `node ${tone}` }),
      make('text', { x: EDGE + 12, y: 23 }, words),
      make('path', { d: `M${EDGE + 40} 35V${35 + CABLE}`, class: `cable ${tone}` }),
    ];
  }

  #box({ bridge, broken }, y, width, height) {
    return [
      make('rect', { x: 1, y, width: width - 2, height, rx: 10, class: `switch ${broken ? 'bad' : 'good'}` }),
      make('text', { x: EDGE, y: y + 25, class: 'name' }, cut(bridge, Math.floor((width - 2 * EDGE) / 9))),
    ];
  }

  #place(ports, cell, y, cells) {
    ports.forEach((port, index) => {
      const element = this.#cells.get(port.key) ?? make('g');
      const button = element.lastChild ?? make('rect', { role: 'button', class: 'key', rx: 5 });
      const x = EDGE + (index % this.#columns) * (cell.width + GAP);
      const atY = y + Math.floor(index / this.#columns) * (cell.height + GAP);
      element.setAttribute('transform', `translate(${x} ${atY})`);
      element.setAttribute('class', `port ${port.tone}`);
      button.setAttribute('aria-label', port.words);
      button.setAttribute('width', cell.width);
      button.setAttribute('height', cell.height);
      element.dataset.key = port.key;
      element.replaceChildren(
        make('rect', { width: cell.width, height: cell.height, rx: 5 }),
        ...(cell === LARGE ? this.#large(port) : [make('text', { x: 17, y: 23, class: 'mark' }, MARKS[port.tone])]),
        button, // on top of all: what is pressed, and what has the focus
      );
      cells.set(port.key, element);
    });
  }

  #large(port) {
    return [
      make('text', { x: 116, y: 22, class: 'mark' }, MARKS[port.tone]),
      make('text', { x: 10, y: 22, class: 'soft' }, port.number ? `port ${port.number}` : 'no port'),
      make('text', { x: 10, y: 43 }, cut(port.label, 14)),
    ];
  }

  #point(target) {
    const port = this.#of(target);
    if (!port) return;
    this.#pointed = port.key;
    this.onPoint(port.words);
  }

  #of(target) {
    const key = target.closest?.('.port')?.dataset.key;
    return this.#drawn?.ports.find((port) => port.key === key);
  }

  #choose(target) {
    const port = this.#of(target);
    if (port?.vmId) this.onChoose(port.vmId);
  }

  #onKey(event) {
    const at = this.#order.indexOf(event.target.closest('.port')?.dataset.key);
    if (at < 0) return;
    const last = this.#order.length - 1;
    const to = {
      ArrowRight: at + 1, ArrowLeft: at - 1, ArrowDown: at + this.#columns, ArrowUp: at - this.#columns, Home: 0, End: last,
    }[event.key];
    if (event.key === 'Enter' || event.key === ' ') this.#choose(event.target);
    else if (to === undefined) return;
    else this.#moveTo(Math.min(last, Math.max(0, to)));
    event.preventDefault();
  }

  #moveTo(index) {
    this.#cells.get(this.#current)?.lastChild.setAttribute('tabindex', -1);
    this.#current = this.#order[index];
    const element = this.#cells.get(this.#current).lastChild;
    element.setAttribute('tabindex', 0);
    element.focus();
  }
}
