/* The dashboard's lists: findings, VMs, sessions, and the line about the host. What came from elsewhere goes into
 * textContent, cleaned, never into markup. */

import { MARKS, sessionTone, shortId, vmWords } from './inventory.js';
import { clean, duration, sentence } from './state.js';

export const $ = (id) => document.getElementById(id);

/* An element with text or children. */
export function build(name, { text, ...properties } = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  if (text !== undefined) element.textContent = text;
  element.append(...children);
  return element;
}

/* Writes only what changed: a live region is read aloud again when it is written again. */
export function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export const mark = (tone) => {
  const element = build('span', { className: `mark ${tone}`, text: MARKS[tone] });
  element.setAttribute('aria-hidden', 'true');
  return element;
};

/* "3 min": how long ago, by the controller's time. */
export const ago = (at, nowMs) => (Number.isNaN(Date.parse(at ?? '')) ? '' : duration(nowMs - Date.parse(at)));

/* Rows by key: what stays keeps its element, and so its focus. */
class Rows {
  #rows = new Map(); // key -> {element, shown}

  constructor(body) {
    this.body = body;
  }

  /* items: [{key, shown, make}]: shown is all that is on the row, as text; make() builds it. */
  show(items) {
    const rows = new Map();
    for (const { key, shown, make } of items) {
      const known = this.#rows.get(key);
      rows.set(key, known?.shown === shown ? known : { element: this.#replace(known, make()), shown });
    }
    this.#rows = rows;
    const wanted = [...rows.values()].map(({ element }) => element);
    if (wanted.length !== this.body.children.length || wanted.some((element, i) => element !== this.body.children[i])) {
      const had = document.activeElement;
      this.body.replaceChildren(...wanted);
      if (this.body.contains(had)) had.focus();
    }
  }

  /* A row that is made anew gives the focus to its successor's button. */
  #replace(known, element) {
    if (known?.element.contains(document.activeElement))
      queueMicrotask(() => element.querySelector('button')?.focus());
    return element;
  }
}

export class Board {
  #vms = new Rows($('vms'));
  #sessions = new Rows($('sessions'));
  #findings = new Rows($('findings'));
  #told = new Set(); // findings that were spoken

  onChoose = () => {}; // (vmId)

  show(inventory, nowMs, filter) {
    this.#showFacts(inventory.status);
    this.#showFindings(inventory);
    this.#showVms(inventory, nowMs, filter);
    this.#showSessions(inventory, nowMs);
  }

  #showFacts(status) {
    if (!status) return;
    const facts = [
      ['Version', status.version],
      ['VMM', status.vmm.name ? `${status.vmm.name}, ${status.vmm.accel}` : 'none'],
      ['Image', status.image.name ?? 'none'],
      ['Disk', `${Math.floor(status.disk.free_mib / 1024)} GiB free`],
      ['Desktops', `${status.desktops} watched`],
    ].map(([term, text]) => [term, clean(text, 80)]);
    if ($('facts').dataset.shown === JSON.stringify(facts)) return;
    $('facts').dataset.shown = JSON.stringify(facts);
    $('facts').replaceChildren(...facts.map(([term, text]) => build('div', {},
      build('dt', { text: term }), build('dd', { text }))));
  }

  #showFindings({ findings, vms }) {
    $('findings-none').hidden = findings.length > 0;
    put($('findings-title'), findings.length ? `Findings: ${findings.length}` : 'Findings');
    $('findings-part').classList.toggle('bad', findings.length > 0);
    this.#findings.show(findings.map((finding) => {
      const about = clean(finding.about, 64);
      const user = clean(vms.get(finding.about)?.user, 64);
      const name = about.startsWith('vm-') ? `VM ${shortId(about)}${user ? ` of ${user}` : ''}` : about;
      return {
        key: `${finding.code} ${about}`,
        shown: JSON.stringify([finding, user]),
        make: () => build('li', {}, mark('bad'), build('div', {},
          build('p', {}, about.startsWith('vm-') ? this.#link(about, name) : build('strong', { text: name }),
            ` ${sentence(finding.words)}`),
          ...(finding.hint ? [build('p', { className: 'soft', text: clean(finding.hint) })] : []))),
      };
    }));
    this.#speak(findings);
  }

  /* What is new, once: the list itself is no live region, it would be read as a whole each time. */
  #speak(findings) {
    const keys = new Set(findings.map(({ code, about }) => `${code} ${about}`));
    const fresh = findings.filter(({ code, about }) => !this.#told.has(`${code} ${about}`));
    this.#told = keys;
    if (fresh.length === 1) put($('live'), `New finding: ${sentence(fresh[0].words)}`);
    else if (fresh.length) put($('live'), `${fresh.length} new findings.`);
  }

  #link(id, text) {
    const button = build('button', { type: 'button', className: 'link', text });
    button.addEventListener('click', () => this.onChoose(id));
    return button;
  }

  #showVms(inventory, nowMs, filter) {
    const rows = inventory.vmRows(filter);
    put($('vms-title'), `VMs: ${inventory.vms.size}`);
    $('vms-none').hidden = rows.length > 0;
    put($('vms-none'), filter ? 'No VM here matches. Enter a whole id and press Enter to read the story of one that has ended.'
      : 'There is no VM.');
    this.#vms.show(rows.map((vm) => {
      const tone = inventory.toneOf(vm);
      const cells = [clean(vm.user, 64), vmWords(vm), clean(vm.type, 16), clean(vm.ip, 40), clean(vm.tap, 20),
        ago(vm.state_since, nowMs)];
      return {
        key: vm.id,
        shown: JSON.stringify([tone, cells]),
        make: () => build('tr', { className: tone },
          build('td', {}, this.#link(vm.id, shortId(vm.id))), build('td', { text: cells[0] }),
          build('td', {}, mark(tone), ` ${cells[1]}`), ...cells.slice(2).map((text) => build('td', { text }))),
      };
    }));
  }

  #showSessions(inventory, nowMs) {
    const rows = inventory.sessionRows();
    put($('sessions-title'), `Login sessions: ${inventory.sessions.size}`);
    $('sessions-none').hidden = rows.length > 0;
    this.#sessions.show(rows.map((session) => {
      const tone = sessionTone(session);
      const left = Date.parse(session.timeout_at ?? '') - nowMs;
      const over = !inventory.sessions.has(session.id);
      const status = `${clean(session.status, 40).replaceAll('_', ' ')}${session.reason ? `: ${clean(session.reason)}` : ''}`;
      const leftWords = over ? '' : Number.isNaN(left) ? 'not yet counting' : duration(Math.max(0, left));
      return {
        key: session.id,
        shown: JSON.stringify([tone, status, leftWords, session.vm_id]),
        make: () => build('tr', { className: tone },
          build('td', { text: `${clean(session.id, 64).slice(0, 8)}…` }), build('td', { text: clean(session.user, 64) }),
          build('td', { text: clean(session.provider, 32) }), build('td', { className: 'long' }, mark(tone), ` ${status}`),
          build('td', { text: leftWords }),
          build('td', {}, ...(session.vm_id ? [this.#link(session.vm_id, shortId(session.vm_id))] : []))),
      };
    }));
  }
}
