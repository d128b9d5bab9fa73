/* The story of one VM: what it is, what happened to it and who did it, what the network doctor says, the end of its
 * console. Everything here may have been written by a guest. */

import { $, ago, build, put } from './board.js';
import { MARKS, isOver, shortId, vmWords } from './inventory.js';
import { call, now } from './operator.js';
import { clean, sentence } from './state.js';

const CONSOLE_BYTES = 4096;
const CONSOLE_LINES = 40;
const DOCTOR_MS = 120000;

/* "+1.2 s": from one event to the next. */
function since(at, before) {
  const ms = Date.parse(at) - Date.parse(before ?? '');
  return Number.isNaN(ms) ? '' : `+${(ms / 1000).toFixed(1)} s`;
}

export class Story {
  #id = null;
  #opener = null;  // what had the focus before
  #asking = false;
  #run = 0;        // of the newest load: a late answer of an older one is dropped

  onClose = () => {};
  findingOf = () => undefined; // (id): what the controller finds wrong with a VM

  constructor() {
    $('story-close').addEventListener('click', () => this.onClose());
    $('story').addEventListener('keydown', (event) => {
      if (event.key === 'Escape') this.onClose();
    });
    $('story-ask').addEventListener('click', () => this.#askDoctor());
  }

  get id() {
    return this.#id;
  }

  async open(id) {
    if (this.#id !== id) {
      if (!this.#id) this.#opener = document.activeElement;
      this.#id = id;
      $('story-doctor').replaceChildren();
      for (const part of ['story-facts', 'story-events', 'story-console']) $(part).replaceChildren();
      this.#showFinding('');
      put($('story-title'), `VM ${shortId(id)}`);
      $('story').hidden = false;
      document.documentElement.dataset.story = 'open';
      $('story-title').focus();
    }
    await this.refresh();
  }

  close() {
    this.#id = null;
    this.#run += 1;
    $('story').hidden = true;
    delete document.documentElement.dataset.story;
    if (this.#opener?.isConnected) this.#opener.focus();
    this.#opener = null;
  }

  async refresh() {
    const id = this.#id;
    if (!id) return;
    this.#run += 1;
    const run = this.#run;
    const path = `/api/vms/${encodeURIComponent(id)}`;
    const [story, log] = await Promise.all([
      call(`${path}/events`), call(`${path}/console?bytes=${CONSOLE_BYTES}`, { as: 'text' })]);
    if (run !== this.#run) return;
    if (story.kind !== 'ok') {
      this.#showFinding(sentence(story.detail, 'The controller does not answer.'));
      return;
    }
    this.#show(story.body, now());
    const lines = log.kind === 'ok' ? log.body.split('\n').map((line) => clean(line, 240)).filter(Boolean) : [];
    put($('story-console'), lines.slice(-CONSOLE_LINES).join('\n') || 'Nothing was written on it.');
  }

  #showFinding(text, bad = true) {
    put($('story-finding'), text);
    $('story-finding').className = bad ? 'bad' : '';
    $('story-finding').hidden = !text;
  }

  #show({ vm, cause, events, files }, nowMs) {
    const finding = this.findingOf(vm.id)?.words ?? vm.finding;
    const words = finding ?? (isOver(vm) ? cause?.words : null) ?? vm.reason;
    this.#showFinding(words ? sentence(words) : '', Boolean(finding) || vm.state === 'failed');
    const facts = [
      ['Id', vm.id], ['User', vm.user], ['State', `${vmWords(vm)}, for ${ago(vm.state_since, nowMs)}`], ['Type', vm.type],
      ['Address', vm.ip], ['MAC', vm.mac], ['Port', vm.tap], ['Size', `${vm.vcpus} vCPU, ${vm.memory_mib} MiB`],
      ['Image', vm.image], ['VMM', vm.vmm], ['Made', vm.created_at], ['Files', files],
    ];
    if (vm.state === 'hibernated')
      facts.splice(3, 0, ['Wakes', `when it is used, or by: mctl vm resume ${clean(vm.id, 64)}`]);
    $('story-facts').replaceChildren(...facts.map(([term, text]) => build('div', {},
      build('dt', { text: term }), build('dd', { text: clean(text, 200) }))));
    $('story-events').replaceChildren(...events.map((event, index) => this.#event(event, events[index - 1])).reverse());
    $('story-ask').hidden = isOver(vm);
  }

  #event(event, before) {
    const change = event.to ? ` ${clean(event.from, 24)} → ${clean(event.to, 24)}` : '';
    return build('li', {},
      build('p', {}, build('strong', { text: clean(event.event, 24) }), change, ' ',
        build('span', { className: 'soft', text: since(event.at, before?.at) })),
      ...(event.reason ? [build('p', { text: sentence(event.reason) })] : []),
      build('p', { className: 'soft', text: `${clean(event.at, 40)}, by ${clean(event.actor, 96)}` }),
      ...(event.evidence ? [build('p', { className: 'soft', text: `Evidence: ${clean(event.evidence, 64)}` })] : []));
  }

  async #askDoctor() {
    if (this.#asking) return;
    const id = this.#id;
    this.#asking = true;
    put($('story-doctor'), 'The doctor looks at the VM\'s way …');
    const answer = await call(`/api/vms/${encodeURIComponent(id)}/diagnostics`, { timeoutMs: DOCTOR_MS });
    this.#asking = false;
    if (id !== this.#id) return;
    if (answer.kind !== 'ok')
      put($('story-doctor'), sentence(answer.detail, 'The controller does not answer.'));
    else
      $('story-doctor').replaceChildren(...this.#diagnosis(answer.body));
  }

  #diagnosis(report) {
    const findings = report.targets.flatMap((target) => target.findings);
    if (!findings.length) {
      const reached = report.targets.some((target) => target.reachable);
      return [build('p', { text: reached ? `${MARKS.good} The VM is reached, and nothing is wrong.`
        : 'No cause was found; whether the VM is reached is not known.' })];
    }
    return findings.map((finding) => build('article', { className: finding.role === 'note' ? '' : 'bad' },
      build('h4', { text: `${clean(finding.role, 20).replace('-', ' ')}: ${clean(finding.title, 200)}` }),
      build('p', { text: sentence(finding.explanation) }),
      build('p', { text: sentence(finding.advice) }),
      build('ul', {}, ...finding.evidence.map(({ where, fact }) => build('li', { className: 'soft',
        text: `${clean(where, 120)}: ${clean(fact, 200)}` }))),
      build('p', { className: 'soft', text: clean(finding.id, 60) })));
  }
}
